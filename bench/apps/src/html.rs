//! Pages with places: `{{name}}` stands for a value.

const STYLE: &str = include_str!("../pages/style.css");

/// The page with its style, and every value in its place, as text.
pub fn fill(page: &str, values: &[(&str, &str)]) -> String {
    let page = page.replace("{{style}}", STYLE);
    values.iter().fold(page, |page, (name, value)| page.replace(&format!("{{{{{name}}}}}"), &escaped(value)))
}

/// As HTML shows it: no value becomes an element.
pub fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_their_places_as_text() {
        let page = fill("<p>{{a}} and {{b}}, {{a}}</p>", &[("a", "1 < 2"), ("b", "\"x\" & 'y'")]);
        assert_eq!(page, "<p>1 &lt; 2 and &quot;x&quot; &amp; &#39;y&#39;, 1 &lt; 2</p>");
    }
}
