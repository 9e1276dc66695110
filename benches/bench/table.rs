//! Aligned columns: the first to the left, all others to the right.

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                line += &if column == 0 { format!("{cell}{padding}") } else { format!("  {padding}{cell}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// With as many digits as it is worth.
pub(crate) fn figure(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["cell", "µs"]);
        table.row(["h1", "17.5"]);
        table.row(["tls-handshake", "340", "met"]);
        assert_eq!(table.render(), "cell             µs\nh1             17.5\ntls-handshake   340  met\n");
    }

    #[test]
    fn figures() {
        for (value, wants) in [(17.54, "17.5"), (99.94, "99.9"), (340.4, "340")] {
            assert_eq!(figure(value), wants);
        }
    }
}
