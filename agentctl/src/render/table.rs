//! Aligned columns.

use super::clean;
use super::paint::{Paint, Tone};

/// One cell: what it says, and its tone.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn toned(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { text: clean::line(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(Tone::Plain, text)
    }
}

/// The rows under `heads`, each column as wide as its widest cell; empty cells are `-`.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: &[[Cell; N]], paint: Paint) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].text.chars().count());
        cells.chain([heads[column].len(), 1]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let heads = heads.map(|head| Cell::toned(Tone::Faint, head));
    let mut text = String::new();
    for row in std::iter::once(&heads).chain(rows) {
        for (column, cell) in row.iter().enumerate() {
            let shown = if cell.text.is_empty() { "-" } else { &cell.text };
            text.push_str(&paint.paint(cell.tone, shown));
            if column + 1 < N {
                text.push_str(&" ".repeat(widths[column] - shown.chars().count() + 2));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_blanks_at_the_end() {
        let rows =
            [["shop".into(), "✓ x".into(), "".into()], ["a-long-name".into(), "".into(), "z\x1b".into()]];
        let text = table(["NAME", "B", "C"], &rows, Paint::new(false));
        insta::assert_snapshot!(text, @r"
        NAME         B    C
        shop         ✓ x  -
        a-long-name  -    z\u{1b}
        ");
    }

    #[test]
    fn colour_does_not_count_as_width() {
        let rows = [[Cell::toned(Tone::Good, "ok"), "x".into()], ["long".into(), "y".into()]];
        let text = table(["A", "B"], &rows, Paint::new(true));
        assert!(text.contains("\x1b[32mok\x1b[0m    x\n") && text.contains("long  y\n"), "{text:?}");
    }
}
