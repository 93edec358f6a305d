//! Routes: which paths are served, and what is spoken there.

use crate::dialect::Dialect;
use crate::path;
use sluice_policy::units::{PoolName, Tokens};

/// What callers may reach. Anything else is 404.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// At least one.
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) dialect: Dialect,
    /// `None`: any.
    pub(crate) method: Option<String>,
    pub(crate) on_unavailable: OnUnavailable,
    pub(crate) pool: Option<PoolName>,
    /// What a request costs in dialects that do not count tokens.
    pub(crate) charge: Tokens,
    pub(crate) query: Query,
    /// Only fields of the dialect's API pass.
    pub(crate) strict_fields: bool,
    /// Streams whose client does not ask for their usage are made to report it.
    pub(crate) splice_usage: bool,
}

/// What of a query goes upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Query {
    /// These parameters, beside the dialect's own.
    Of(Vec<String>),
    /// All of it.
    Any,
}

/// What happens to a call while the quota service is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnUnavailable {
    /// It is refused.
    Closed,
    /// It passes if this worker lately saw its key admitted.
    Open,
}

impl Route {
    /// What operators call it: its first path.
    pub(crate) fn name(&self) -> &str {
        self.patterns.first().map_or("", |pattern| pattern.text.as_str())
    }

    /// The path with what may go upstream of its query.
    pub(crate) fn outgoing(&self, path_and_query: &str) -> String {
        match &self.query {
            Query::Any => path_and_query.to_owned(),
            Query::Of(names) => path::with_query_of(path_and_query, |name| {
                self.dialect.query().contains(&name) || names.iter().any(|known| known == name)
            }),
        }
    }
}

/// A path, in which `{model}` and `{version}` stand for one segment each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    segments: Vec<Segment>,
    /// The model is all that follows, slashes included.
    takes_rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exactly(String),
    Model,
    Version,
}

impl Pattern {
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        path::normal(text)?;
        if text.contains('?') {
            return Err("must have no query");
        }
        let segment = |segment: &str| match segment {
            "{model}" => Ok(Segment::Model),
            "{version}" => Ok(Segment::Version),
            plain if plain.contains(['{', '}', '*']) => Err("may have {model} and {version} only, as whole segments"),
            plain => Ok(Segment::Exactly(plain.to_owned())),
        };
        let segments = text.split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
        if segments.iter().filter(|segment| **segment == Segment::Model).count() > 1 {
            return Err("may have {model} only once");
        }
        Ok(Self { text: text.to_owned(), segments, takes_rest: false })
    }

    /// Where it ends with the model: one whose name has slashes.
    pub(crate) fn with_slashes(self) -> Self {
        let takes_rest = self.segments.last() == Some(&Segment::Model);
        Self { takes_rest, ..self }
    }

    /// Whether its model may have slashes.
    pub(crate) fn takes_rest(&self) -> bool {
        self.takes_rest
    }

    /// Whether all of this path up to the model stands there as it is.
    pub(crate) fn begins(&self, path: &str) -> bool {
        self.text.split("{model}").next().is_some_and(|beginning| path.starts_with(beginning))
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn names_model(&self) -> bool {
        self.segments.contains(&Segment::Model)
    }

    /// Whether it is one path only.
    pub(crate) fn is_literal(&self) -> bool {
        self.segments.iter().all(|segment| matches!(segment, Segment::Exactly(_)))
    }

    /// `None`: the path is another. Else the model in it, where the pattern has one.
    pub(crate) fn matches<'a>(&self, path: &'a str) -> Option<Option<&'a str>> {
        let most = if self.takes_rest { self.segments.len() } else { usize::MAX };
        let mut given = path.splitn(most, '/');
        let mut model = None;
        for segment in &self.segments {
            let text = given.next()?;
            match segment {
                Segment::Exactly(wanted) if wanted == text => {}
                Segment::Exactly(_) => return None,
                _ if text.is_empty() => return None,
                Segment::Model => model = Some(text),
                Segment::Version => {}
            }
        }
        given.next().is_none().then_some(model)
    }

    /// The path with another model in it.
    pub(crate) fn rename(&self, path_and_query: &str, model: &str) -> Option<String> {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let at = self.segments.iter().position(|segment| *segment == Segment::Model)?;
        let renamed = |(index, segment)| if index == at { model } else { segment };
        let path: Vec<&str> = path.split('/').enumerate().map(renamed).collect();
        let path = path.join("/");
        Some(query.map_or(path.clone(), |query| format!("{path}?{query}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn a_literal_path_matches_itself_only() {
        let literal = pattern("/v1/chat/completions");
        assert!(literal.is_literal() && !literal.names_model());
        assert_eq!(literal.matches("/v1/chat/completions"), Some(None));
        for other in ["/v1/chat/completions/", "/v1/chat", "/v1/chat/Completions", "/v1/chat/completions/x", "/"] {
            assert_eq!(literal.matches(other), None, "{other}");
        }
    }

    #[test]
    fn the_model_is_one_segment_that_is_not_empty() {
        let infer = pattern("/v2/models/{model}/versions/{version}/infer");
        assert_eq!(infer.matches("/v2/models/m/versions/1/infer"), Some(Some("m")));
        for other in ["/v2/models//versions/1/infer", "/v2/models/m/versions//infer", "/v2/models/m/n/versions/1/infer"]
        {
            assert_eq!(infer.matches(other), None, "{other}");
        }
        let renamed = infer.rename("/v2/models/m/versions/1/infer?x=m", "other");
        assert_eq!(renamed.as_deref(), Some("/v2/models/other/versions/1/infer?x=m"));
    }

    #[test]
    fn a_model_with_slashes_is_the_rest_of_the_path_where_that_is_allowed() {
        let models = pattern("/v1/models/{model}");
        assert_eq!(models.matches("/v1/models/a/b"), None);
        let models = models.with_slashes();
        assert_eq!(models.matches("/v1/models/a"), Some(Some("a")));
        assert_eq!(models.matches("/v1/models/a/b/c"), Some(Some("a/b/c")));
        for other in ["/v1/models", "/v1/models/", "/v1/model/a/b"] {
            assert_eq!(models.matches(other), None, "{other}");
        }
        assert!(!pattern("/v1/{model}/x").with_slashes().takes_rest());
    }

    #[test]
    fn patterns_that_mean_nothing_are_refused() {
        for text in ["", "v1", "/v1//x", "/v1?x", "/v1/{name}", "/v1/x{model}", "/v1/*", "/{model}/{model}"] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
