//! A way through the worlds, told line by line.

use crate::action::Action;
use crate::scene::{BEGIN, gate_name, holder_id};
use crate::world::{Letter, World};
use sluice_policy::ledger::SyncReply;
use std::fmt::Write;
use std::sync::Arc;

/// One line for each step: what happened, and what there was then.
pub fn lines(trace: &[(World, Option<Action>)]) -> Vec<String> {
    let mut lines =
        vec![format!("{:>6}    {:<58} {}", 0, "", trace.first().map(|(world, _)| standing(world)).unwrap_or_default())];
    for (number, pair) in trace.windows(2).enumerate() {
        let [(before, Some(action)), (after, _)] = pair else { continue };
        let time = after.now.since(BEGIN).0;
        let what = what(before, *action);
        lines.push(format!("{time:>6} ms {:>2} {what:<58} {}{}", number + 1, standing(after), asked(before, after)));
    }
    lines
}

fn what(world: &World, action: Action) -> String {
    let level = |line: usize| format!("P{line}");
    match action {
        Action::Pass => "time passes".to_owned(),
        Action::Arrive(gate, line) => format!("a {} caller arrives at {}", level(line), gate_name(gate)),
        Action::Leave(gate, line) => format!("a {} caller leaves {}", level(line), gate_name(gate)),
        Action::End(gate) => format!("a call of {} ends", gate_name(gate)),
        Action::TimeOut(gate) => format!("{} waits no longer for its answer", gate_name(gate)),
        Action::Deliver(letter) => world.letters.get(letter).map_or(String::new(), |letter| letter_text(letter)),
        Action::DeliverCopy(letter) => {
            world.letters.get(letter).map_or(String::new(), |letter| format!("{}, and will again", letter_text(letter)))
        }
        Action::Reload(gate) => format!("{} takes over the next configuration", gate_name(gate)),
        Action::Crash(gate) => format!("{} crashes", gate_name(gate)),
        Action::Restart(gate) => format!("{} starts again", gate_name(gate)),
        Action::CatchUp => "the replica catches up".to_owned(),
        Action::FailOver => "the replica takes over".to_owned(),
        Action::FailBack => "the server of before answers again".to_owned(),
        Action::Flush => "the ledger loses everything".to_owned(),
        Action::Hear(gate) => format!("{} hears of the new server by another account", gate_name(gate)),
        Action::JumpAhead => "the server's clock jumps ahead".to_owned(),
        Action::JumpBack => "the server's clock jumps back".to_owned(),
    }
}

fn letter_text(letter: &Letter) -> String {
    match letter {
        Letter::Request(gate, request) => format!("call {}{} reaches the ledger", gate_name(*gate), request.seq),
        Letter::Reply(gate, reply) => {
            format!("answer to {}{} arrives: {}", gate_name(*gate), reply.seq, granted(reply))
        }
        Letter::Notice(gate, notice) => {
            format!("notice on {}{} arrives: {}", gate_name(*gate), notice.seq, granted(notice))
        }
        Letter::Booking(gate, slots) => format!("the ledger books {slots} for {}", gate_name(*gate)),
    }
}

fn granted(reply: &SyncReply) -> String {
    let turns: u32 = reply.picks.values().sum();
    let mut text = format!("{} slots", reply.granted);
    if turns > 0 {
        let _ = write!(text, ", {turns} in turn");
    }
    if reply.contended {
        text.push_str(", others wait");
    }
    text
}

/// The ledger's books beside what runs.
fn standing(world: &World) -> String {
    let mut text = String::from("books");
    for (index, _) in world.gates.iter().enumerate() {
        let _ = write!(text, " {}{}", gate_name(index), world.ledger.granted_to(&holder_id(index)));
    }
    let _ = write!(text, " z{} | runs", world.ledger.zombies());
    for (index, gate) in world.gates.iter().enumerate() {
        let _ = write!(text, " {}{}", gate_name(index), gate.running.len());
    }
    if !world.orphans.is_empty() {
        let _ = write!(text, " orphans {}", world.orphans.len());
    }
    text
}

/// The calls that were sent with a step.
fn asked(before: &World, after: &World) -> String {
    let mut text = String::new();
    let is_new = |letter: &&Arc<Letter>| !before.letters.iter().any(|known| Arc::ptr_eq(known, letter));
    for letter in after.letters.iter().filter(is_new) {
        if let Letter::Request(gate, request) = &**letter {
            let waits: u32 = request.rows.iter().map(|row| row.waiting).sum();
            let _ = write!(text, " | {}{} keeps {}", gate_name(*gate), request.seq, request.keep);
            if waits > 0 {
                let _ = write!(text, ", {waits} wait");
            }
        }
    }
    text
}
