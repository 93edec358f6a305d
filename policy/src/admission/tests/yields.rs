//! What is reserved for a call whose tenant is new to its model, in a pool without a context length.

use super::*;

fn world() -> World {
    let document = json!({
        "pools": [{"name": "smol", "models": ["m"], "capacity": {"concurrent": 9, "tokens_per_s": 1_000}, "reserve_at_most": 5_000}],
        "tenants": [{"id": "a"}, {"id": "b"}],
    });
    let mut world = World::new(json!({}));
    let config = read_document(&document, Config::read).unwrap();
    world.core = Admission::new(config, &Replica { id: "gate-0".into(), incarnation: 1, lease: LEASE }, Millis(0));
    world.sync();
    world
}

/// Asks for a billion tokens; what is reserved beside a prompt of ten.
fn reserved(world: &mut World, tenant: &str) -> (AdmissionId, u64) {
    let (id, decision) = world.ask(tenant, |request| request.max_tokens = Some(Tokens(1_000_000_000)));
    let Decision::Admitted(grant) = decision else { panic!("{decision:?}") };
    (id, grant.reserved.0 - 10)
}

#[test]
fn a_huge_max_tokens_of_a_new_tenant_blocks_the_pool_for_seconds_and_not_for_days() {
    let mut world = world();
    assert_eq!(reserved(&mut world, "a").1, 5_000);
    world.wait(8_000);
    world.admit("b");
}

#[test]
fn no_more_is_reserved_than_the_model_has_yielded() {
    let mut world = world();
    let (first, _) = reserved(&mut world, "a");
    world.end(&first, Outcome::Completed, 700);
    world.wait(9_000);
    let (second, reserved_of_b) = reserved(&mut world, "b");
    assert_eq!(reserved_of_b, 700);
    world.end(&second, Outcome::Completed, 3);
    world.wait(9_000);
    assert_eq!(reserved(&mut world, "b").1, 16, "its own yield counts where it is known");
}
