//! Text from elsewhere (apps, certificates, other people) made harmless for a terminal.
//!
//! An app's error page may hold escape sequences that recolour, overwrite or even type on the reader's
//! terminal, and characters that reverse the order of what follows (CVE-2021-42574).

use std::fmt::Write;

/// One line: control characters and invisible direction marks are spelled out, line ends and tabs are blanks.
pub(crate) fn line(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => clean.push(' '),
            c if is_harmful(c) => clean.extend(c.escape_unicode()),
            c => clean.push(c),
        }
    }
    clean.truncate(clean.trim_end().len());
    clean
}

/// At most `lines_max` lines of at most `columns_max` characters, and how many lines were left out.
pub(crate) fn excerpt(text: &str, lines_max: usize, columns_max: usize) -> (Vec<String>, usize) {
    let mut lines = text.lines().map(line).filter(|line| !line.is_empty());
    let shown = lines.by_ref().take(lines_max).map(|line| shorten(&line, columns_max)).collect();
    (shown, lines.count())
}

/// JSON with the same meaning: what JSON itself lets through raw, and terminals act on, is escaped.
pub(crate) fn json(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside of texts JSON has only blanks of these; inside it forbids them raw.
        if is_harmful(c) && !matches!(c, '\n' | '\r' | '\t') {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(clean, "\\u{unit:04x}").expect("writing to a String cannot fail");
            }
        } else {
            clean.push(c);
        }
    }
    clean
}

/// The beginning of `text`, with `…` where it was cut.
pub(crate) fn shorten(text: &str, columns_max: usize) -> String {
    if text.chars().count() <= columns_max {
        return text.to_owned();
    }
    let kept = text.chars().take(columns_max.saturating_sub(1));
    kept.chain(std::iter::once('…')).collect()
}

fn is_harmful(c: char) -> bool {
    let direction = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || direction || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (text, want) in [
            ("plain – ünïcode ✓", "plain – ünïcode ✓"),
            ("\x1b[31mred\x1b[0m", "\\u{1b}[31mred\\u{1b}[0m"),
            ("two\nlines\r\n", "two lines"),
            ("bell\x07 del\x7f c1\u{9b}31m", "bell\\u{7} del\\u{7f} c1\\u{9b}31m"),
            ("user\u{202e}nimda", "user\\u{202e}nimda"),
        ] {
            assert_eq!(line(text), want, "{text:?}");
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let text = serde_json::to_string("a\u{9b}31m \u{7f} \u{202e} \n ✓").unwrap();
        let clean = json(&text);
        assert_eq!(clean, r#""a\u009b31m \u007f \u202e \n ✓""#);
        let [before, after] = [&text, &clean].map(|text| serde_json::from_str::<String>(text).unwrap());
        assert_eq!(before, after);
    }

    #[test]
    fn excerpts_are_short() {
        let (lines, left_out) = excerpt("<html>\n\n<h1>a long heading</h1>\n</html>\n", 2, 8);
        assert_eq!((lines, left_out), (vec!["<html>".to_owned(), "<h1>a l…".to_owned()], 1));
    }
}
