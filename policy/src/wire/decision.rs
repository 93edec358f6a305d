//! How an admission's reply is read: by its first field, which says what the others are.
//!
//! serde's own reader of such a type takes the tag wherever it stands, and for that first copies the whole document into
//! values of its own: half of what the answer to an admission cost the filter. Every release writes the decision first.

use super::AdmissionReply;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum First {
    Decision,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Decision {
    Admitted,
    Rejected,
}

impl<'de> Deserialize<'de> for AdmissionReply {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = AdmissionReply;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a decision, and then what goes with it")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AdmissionReply, A::Error> {
        let decision = map.next_entry::<First, Decision>()?.map(|(First::Decision, decision)| decision);
        let rest = MapAccessDeserializer::new(map);
        match decision {
            Some(Decision::Admitted) => Deserialize::deserialize(rest).map(AdmissionReply::Admitted),
            Some(Decision::Rejected) => Deserialize::deserialize(rest).map(AdmissionReply::Rejected),
            None => Err(A::Error::missing_field("decision")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Reason, Refusal};
    use proptest::prelude::*;

    #[test]
    fn a_reply_is_read_as_it_was_written_and_by_its_first_field_alone() {
        let refused = AdmissionReply::Rejected(Refusal::new(Reason::QueueFull, "try again"));
        let text = serde_json::to_string(&refused).unwrap();
        assert!(text.starts_with(r#"{"decision":"rejected","#), "{text}");
        assert_eq!(serde_json::from_str::<AdmissionReply>(&text).unwrap(), refused);
        let late = text.replacen(r#""decision":"rejected","#, "", 1).replacen('}', r#","decision":"rejected"}"#, 1);
        for other in ["{}", "[]", "null", r#"{"decision":"maybe"}"#, r#"{"decision":"admitted"}"#, &late] {
            assert!(serde_json::from_str::<AdmissionReply>(other).is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn fields_of_a_later_release_are_passed_over(name in "[a-z]{12,20}", value: u64) {
            let admitted = format!(
                r#"{{"decision":"admitted","tenant":"t","namespace":"n","tier":"x","priority":5,"{name}":[{value}],
                    "pool":"p","reserved":1,"waited_ms":2,"rates":[]}}"#,
            );
            let read = serde_json::from_str::<AdmissionReply>(&admitted);
            prop_assert!(matches!(&read, Ok(AdmissionReply::Admitted(grant)) if &*grant.namespace == "n"), "{read:?}");
        }
    }
}
