//! Header lists, and which headers are Sluice's own and so never a client's or an upstream's to set.

use crate::secret::Secret;

/// Set on the request that goes upstream; the mesh routes on them.
pub(crate) const TENANT: &str = "x-tenant-id";
pub(crate) const NAMESPACE: &str = "x-tenant-namespace";
pub(crate) const TIER: &str = "x-tenant-tier";
pub(crate) const PRIORITY: &str = "x-priority";
pub(crate) const POOL: &str = "x-pool";
/// What shows the mesh's routes that the call comes from the filter; they take it off again.
pub(crate) const ROUTE: &str = "x-sluice-route";
/// Set on the request and on the reply.
pub(crate) const ADMISSION: &str = "x-admission-id";
/// Set on the reply.
pub(crate) const QUEUE_WAIT: &str = "x-queue-wait-ms";
/// The level at which the call was served.
pub(crate) const GRANTED_PRIORITY: &str = "x-sluice-priority";
pub(crate) const REASON: &str = "x-sluice-reason";
pub(crate) const POSITION: &str = "x-sluice-queue-position";
pub(crate) const ESTIMATED_WAIT: &str = "x-sluice-estimated-wait-ms";
/// Sent by clients: how long they are willing to wait in the queue.
pub(crate) const DEADLINE: &str = "x-sluice-deadline-ms";

const OURS: [&str; 7] = [TENANT, NAMESPACE, TIER, PRIORITY, POOL, ADMISSION, QUEUE_WAIT];
const OUR_PREFIX: &str = "x-sluice-";
/// Clients steer Envoy's router by these (retries, hedging, timeouts): two calls could run on one slot. Envoy sets
/// those that it needs itself after this filter.
const ENVOY_PREFIX: &str = "x-envoy-";

/// One change of a header map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderEdit {
    Remove(String),
    Set(&'static str, String),
    SetSecret(&'static str, Secret),
}

impl HeaderEdit {
    pub(crate) fn name(&self) -> &str {
        match self {
            HeaderEdit::Remove(name) => name,
            HeaderEdit::Set(name, _) | HeaderEdit::SetSecret(name, _) => name,
        }
    }
}

/// The headers of one message, in order, as Envoy has them. Values are bytes: HTTP does not promise UTF-8.
///
/// No `Debug`: the list holds the caller's key.
#[derive(Clone, Default)]
pub(crate) struct Headers(Vec<Header>);

#[derive(Clone)]
struct Header {
    name: String,
    /// The name in lower case with `-` for `_`, where that is another one: CGI-like servers fold both, so a spelling must
    /// not smuggle a header past us.
    folded: Option<String>,
    value: Vec<u8>,
}

impl Header {
    fn folded(&self) -> &str {
        self.folded.as_deref().unwrap_or(&self.name)
    }
}

impl Headers {
    pub(crate) fn new(pairs: Vec<(String, Vec<u8>)>) -> Self {
        let header = |(name, value): (String, Vec<u8>)| {
            let differs = name.bytes().any(|byte| byte == b'_' || byte.is_ascii_uppercase());
            let folded = differs.then(|| name.to_ascii_lowercase().replace('_', "-"));
            Header { name, folded, value }
        };
        Self(pairs.into_iter().map(header).collect())
    }

    /// The first value of a header with exactly this (lower-case) name.
    pub(crate) fn first(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|header| header.name == name).map(|header| header.value.as_slice())
    }

    /// Like [`Headers::first`], and `None` when the value is not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.first(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Every value of a header in any spelling of its name.
    pub(crate) fn spelled<'a>(&'a self, folded: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |header| header.folded() == folded).map(|header| header.value.as_slice())
    }

    /// The length of all names and values.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|header| (header.name.len() + header.value.len()) as u64).sum()
    }

    /// Removes, in every spelling, whatever `unwanted` says of the folded name.
    pub(crate) fn removals(&self, unwanted: impl Fn(&str) -> bool) -> Vec<HeaderEdit> {
        let mut names: Vec<&str> =
            self.0.iter().filter(|header| unwanted(header.folded())).map(|header| header.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().map(|name| HeaderEdit::Remove(name.to_owned())).collect()
    }
}

/// Whether a client must not reach the upstream with this header.
pub(crate) fn is_forged_by_client(folded: &str) -> bool {
    is_ours(folded) || folded.starts_with(ENVOY_PREFIX)
}

/// Whether a client must not see this header of the upstream.
pub(crate) fn is_forged_by_upstream(folded: &str) -> bool {
    is_ours(folded)
}

fn is_ours(folded: &str) -> bool {
    OURS.contains(&folded) || folded.starts_with(OUR_PREFIX)
}

#[cfg(test)]
pub(crate) fn headers_of(pairs: &[(&str, &str)]) -> Headers {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), value.as_bytes().to_vec());
    Headers::new(pairs.iter().map(owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_forged_header_is_removed_in_every_spelling(
            index in 0..OURS.len() + 2,
            upper: Vec<bool>,
            underscore: Vec<bool>,
        ) {
            let name = OURS.get(index).copied().unwrap_or(if index == OURS.len() { "x-sluice-new" } else { "x-envoy-hedge-on-per-try-timeout" });
            let spelled: String = name
                .chars()
                .enumerate()
                .map(|(at, letter)| {
                    let flag = |flags: &[bool]| flags.get(at % flags.len().max(1)).copied().unwrap_or(false);
                    match letter {
                        '-' if flag(&underscore) => '_',
                        other if flag(&upper) => other.to_ascii_uppercase(),
                        other => other,
                    }
                })
                .collect();
            let headers = headers_of(&[(&spelled, "1"), ("accept", "*/*"), (&spelled, "2")]);
            prop_assert_eq!(headers.removals(is_forged_by_client), [HeaderEdit::Remove(spelled)]);
        }
    }

    #[test]
    fn headers_of_others_stay() {
        let headers = headers_of(&[("x-tenant", "a"), ("x-request-id", "b"), ("x-slui", "c"), (":path", "/")]);
        assert!(headers.removals(is_forged_by_client).is_empty());
    }

    #[test]
    fn values_that_are_not_utf8_are_no_text_and_no_panic() {
        let headers = Headers::new(vec![("x-priority".to_owned(), vec![0xff])]);
        assert_eq!(headers.text("x-priority"), None);
        assert_eq!(headers.spelled("x-priority").count(), 1);
    }
}
