//! Pages that operators write for what Portcullis answers itself: HTML with a few actions in it.
//!
//! The actions are those of Go's html/template that kamal-proxy's users have in their pages: `{{ .Message }}`,
//! `{{ if .Message }} … {{ else if .Status }} … {{ else }} … {{ end }}`, comments, and `{{-` and `-}}` that take the
//! white space beside them away. All else is an error when the page is read, not when it is shown.

use std::collections::BTreeMap;

/// Values that a page can show; all of them are escaped for HTML.
#[derive(Debug, Clone, Copy, Default)]
pub struct Values<'v> {
    /// What `agentctl stop --message` said; else empty.
    pub message: &'v str,
    pub status: u16,
    /// Of the request, so that a visitor can tell it to whoever reads the log.
    pub request_id: &'v str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Message,
    Status,
    RequestId,
}

impl Field {
    const ALL: [(&'static str, Self); 3] =
        [(".Message", Self::Message), (".Status", Self::Status), (".RequestId", Self::RequestId)];

    fn print(self, values: &Values<'_>, out: &mut String) {
        match self {
            Self::Message => escape(values.message, out),
            Self::Status => out.push_str(&values.status.to_string()),
            Self::RequestId => escape(values.request_id, out),
        }
    }

    fn is_empty(self, values: &Values<'_>) -> bool {
        match self {
            Self::Message => values.message.is_empty(),
            Self::Status => values.status == 0,
            Self::RequestId => values.request_id.is_empty(),
        }
    }
}

/// One page, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Node>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Text(String),
    Field(Field),
    /// The nodes where the field is not empty, and those where it is.
    If(Field, Vec<Node>, Vec<Node>),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line}: {what}")]
pub struct TemplateError {
    /// From 1.
    line: usize,
    what: String,
}

/// Deeper than anybody nests by hand.
const DEPTH_MAX: usize = 16;

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parser = Parser { text, at: 0, trims: false };
        let (nodes, end) = parser.nodes(0)?;
        match end {
            Closing::Page => Ok(Self(nodes)),
            Closing::Else(_) => Err(parser.wrong("`else` without an `if`")),
            Closing::End => Err(parser.wrong("`end` without an `if`")),
        }
    }

    pub fn render(&self, values: &Values<'_>) -> String {
        let mut out = String::new();
        render(&self.0, values, &mut out);
        out
    }
}

fn render(nodes: &[Node], values: &Values<'_>, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Field(field) => field.print(values, out),
            Node::If(field, then, otherwise) => {
                render(if field.is_empty(values) { otherwise } else { then }, values, out);
            }
        }
    }
}

/// Safe in the text of an element and in a quoted attribute.
pub fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    /// The action before ended with `-}}`.
    trims: bool,
}

/// What ended a list of nodes.
enum Closing {
    Page,
    /// With a condition of its own, if it is an `else if`.
    Else(Option<Field>),
    End,
}

impl<'t> Parser<'t> {
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node>, Closing), TemplateError> {
        let mut nodes = Vec::new();
        loop {
            let Some(action) = self.action(&mut nodes)? else { return Ok((nodes, Closing::Page)) };
            let words: Vec<&str> = action.split_whitespace().collect();
            match words[..] {
                ["end"] => return Ok((nodes, Closing::End)),
                ["else"] => return Ok((nodes, Closing::Else(None))),
                ["else", "if", name] => return Ok((nodes, Closing::Else(Some(self.field(name)?)))),
                ["if", name] => {
                    let field = self.field(name)?;
                    nodes.push(self.condition(field, depth + 1)?);
                }
                [name] if name.starts_with('.') => nodes.push(Node::Field(self.field(name)?)),
                _ => {
                    let message = format!(
                        "`{{{{ {action} }}}}` is not known; there are {}, `if`, `else`, `end` and comments",
                        names()
                    );
                    return Err(self.wrong(&message));
                }
            }
        }
    }

    fn condition(&mut self, field: Field, depth: usize) -> Result<Node, TemplateError> {
        if depth > DEPTH_MAX {
            return Err(self.wrong(&format!("more than {DEPTH_MAX} `if`s inside each other")));
        }
        let opened_at = self.at;
        let unclosed = |parser: &mut Self| {
            parser.at = opened_at;
            parser.wrong("this `if` has no `end`")
        };
        let (then, end) = self.nodes(depth)?;
        let otherwise = match end {
            Closing::End => Vec::new(),
            Closing::Else(Some(other)) => vec![self.condition(other, depth + 1)?],
            Closing::Else(None) => match self.nodes(depth)? {
                (nodes, Closing::End) => nodes,
                (_, Closing::Else(_)) => return Err(self.wrong("a second `else` for one `if`")),
                (_, Closing::Page) => return Err(unclosed(self)),
            },
            Closing::Page => return Err(unclosed(self)),
        };
        Ok(Node::If(field, then, otherwise))
    }

    /// The text before the next action goes to `nodes`; `None` at the end of the page. Comments are skipped.
    fn action(&mut self, nodes: &mut Vec<Node>) -> Result<Option<&'t str>, TemplateError> {
        loop {
            let rest = &self.text[self.at..];
            let Some(begin) = rest.find("{{") else {
                self.push(nodes, rest, false);
                self.at = self.text.len();
                return Ok(None);
            };
            let inside = &rest[begin + 2..];
            // Go wants white space behind the mark, for `{{-1}}` is a number.
            let trims = inside.starts_with("- ") || inside.starts_with("-\n") || inside.starts_with("-\t");
            self.push(nodes, &rest[..begin], trims);
            let inside = if trims { &inside[1..] } else { inside };
            let is_comment = inside.trim_start().starts_with("/*");
            let closing = if is_comment { inside.find("*/").map(|at| at + 2) } else { Some(0) };
            let end = closing.and_then(|from| inside[from..].find("}}").map(|at| from + at));
            let Some(end) = end else {
                self.at += begin;
                return Err(self.wrong("`{{` without `}}`"));
            };
            let body = &inside[..end];
            self.trims = body.ends_with(" -") || body.ends_with("\n-") || body.ends_with("\t-");
            let body = if self.trims { &body[..body.len() - 1] } else { body };
            self.at += begin + 2 + usize::from(trims) + end + 2;
            let body = body.trim();
            if !is_comment {
                return Ok(Some(body));
            }
            if !body.ends_with("*/") {
                return Err(self.wrong("a comment has its action for itself"));
            }
        }
    }

    fn push(&mut self, nodes: &mut Vec<Node>, text: &str, trims_end: bool) {
        let text = if std::mem::take(&mut self.trims) { text.trim_start() } else { text };
        let text = if trims_end { text.trim_end() } else { text };
        if !text.is_empty() {
            nodes.push(Node::Text(text.to_owned()));
        }
    }

    fn field(&self, name: &str) -> Result<Field, TemplateError> {
        let known = Field::ALL.into_iter().find(|(known, _)| *known == name);
        known
            .map(|(_, field)| field)
            .ok_or_else(|| self.wrong(&format!("`{name}` is not known; there are {}", names())))
    }

    fn wrong(&self, what: &str) -> TemplateError {
        let line = self.text[..self.at].matches('\n').count() + 1;
        TemplateError { line, what: what.to_owned() }
    }
}

fn names() -> String {
    Field::ALL.map(|(name, _)| format!("`{name}`")).join(", ")
}

/// The statuses that have a page: single ones (`503`) and whole classes (`5xx`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages(BTreeMap<Name, Template>);

/// Single ones before their class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Status(u16),
    /// The first digit.
    Class(u16),
}

impl Pages {
    /// Whether a file of this name is a page: `503.html` or `5xx.html`, of the errors 400 to 599.
    pub fn is_page(file_name: &str) -> bool {
        Name::parse(file_name).is_some()
    }

    /// Adds the page that the file of this name holds; of another name, nothing.
    pub fn add(&mut self, file_name: &str, text: &str) -> Result<(), TemplateError> {
        if let Some(name) = Name::parse(file_name) {
            self.0.insert(name, Template::parse(text)?);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, status: u16) -> Option<&Template> {
        self.0.get(&Name::Status(status)).or_else(|| self.0.get(&Name::Class(status / 100)))
    }
}

impl Name {
    fn parse(file_name: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(".html").filter(|stem| stem.len() == 3)?;
        match stem {
            "4xx" => Some(Self::Class(4)),
            "5xx" => Some(Self::Class(5)),
            _ => stem.parse().ok().filter(|status| (400..600).contains(status)).map(Self::Status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: Values<'static> =
        Values { message: "Back at <9> & \"then\"", status: 503, request_id: "r-1" };

    #[test]
    fn pages_are_filled_in() {
        for (text, want) in [
            ("plain", "plain"),
            ("{{ .Message }}", "Back at &lt;9&gt; &amp; &#34;then&#34;"),
            ("{{.Status}} for {{.RequestId}}", "503 for r-1"),
            ("a{{ if .Message }}b{{ else }}c{{ end }}d", "abd"),
            ("a {{- if .Message -}} b {{- end -}} c", "abc"),
            ("a{{/* {{ .Nothing }} */}}b", "ab"),
            ("a {{- /* x */ -}} b", "ab"),
            ("{{ if .Message }}{{ if .Status }}1{{ else }}2{{ end }}{{ end }}", "1"),
            ("{ {x} }} }}", "{ {x} }} }}"),
            ("<style>a{b:c}</style>", "<style>a{b:c}</style>"),
            ("ä{{ .Status }}ö", "ä503ö"),
        ] {
            assert_eq!(Template::parse(text).map(|page| page.render(&VALUES)), Ok(want.to_owned()), "{text}");
        }
        let text = "{{ if .Message }}m{{ else if .RequestId }}i{{ else }}n{{ end }}";
        let page = Template::parse(text).unwrap();
        assert_eq!(page.render(&Values { request_id: "x", ..Values::default() }), "i");
        assert_eq!(page.render(&Values::default()), "n");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, want) in [
            ("a\n{{ .Mesage }}", 2, "`.Mesage` is not known; there are `.Message`, `.Status`, `.RequestId`"),
            ("{{ range .X }}{{ end }}", 1, "`{{ range .X }}` is not known"),
            ("{{ }}", 1, "is not known"),
            ("a\n\n{{ if .Message }}\nb", 3, "this `if` has no `end`"),
            ("{{ if .Message }}{{ else }}b", 1, "this `if` has no `end`"),
            ("{{ if .Message }}{{ else }}{{ else }}{{ end }}", 1, "a second `else`"),
            ("{{ end }}", 1, "`end` without"),
            ("x\n{{ else }}", 2, "`else` without"),
            ("x\n{{ .Message", 2, "`{{` without `}}`"),
            ("{{/* x }}", 1, "`{{` without `}}`"),
            ("{{ /* x */ .Message }}", 1, "a comment has its action for itself"),
            ("{{ if Message }}{{ end }}", 1, "`Message` is not known"),
        ] {
            let error = Template::parse(text).unwrap_err();
            assert!(error.line == line && error.what.contains(want), "{text:?} gave {error}");
        }
        let deep = format!("{}{}", "{{if .Status}}".repeat(20), "{{end}}".repeat(20));
        assert!(Template::parse(&deep).unwrap_err().what.contains("more than 16"));
    }

    #[test]
    fn a_status_has_its_own_page_or_that_of_its_class() {
        let mut pages = Pages::default();
        for (name, is_page) in [
            ("503.html", true),
            ("5xx.html", true),
            ("404.html", true),
            ("6xx.html", false),
            ("200.html", false),
            ("503.htm", false),
            ("+03.html", false),
            ("5030.html", false),
            ("index.html", false),
        ] {
            assert_eq!(Pages::is_page(name), is_page, "{name}");
            pages.add(name, name).unwrap();
        }
        let shown = |status| pages.get(status).map(|page| page.render(&Values::default()));
        for (status, want) in
            [(503, Some("503.html")), (502, Some("5xx.html")), (404, Some("404.html")), (400, None)]
        {
            assert_eq!(shown(status).as_deref(), want, "{status}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-z{}\\-/* .\n]{0,60}", more in "\\PC{0,20}") {
            let _ = Template::parse(&text);
            let _ = Template::parse(&format!("{{{{{more}}}}}{text}"));
        }

        #[test]
        fn values_never_open_a_tag(message in "\\PC{0,40}") {
            let shown = Template::parse("{{ .Message }}").unwrap().render(&Values { message: &message, ..Values::default() });
            proptest::prop_assert!(!shown.contains(['<', '>', '"', '\'']));
        }
    }
}
