//! What all root contexts of a VM share: the mail for each service, which outlives the configuration that it began with.

use crate::config::Service;
use crate::host;
use crate::instances::{self, Watch};
use crate::mail::{Legacy, Mail};
use log::{info, warn};
use sluice_policy::units::Millis;
use sluice_policy::wire::EndedWorker;
use std::cell::RefCell;
use std::rc::Rc;

/// The instances' lines, and what those have left that ended: keys of Envoy's shared data.
const LINES: &str = "sluice.instances";
const LEFT: &str = "sluice.left";

thread_local! {
    static VM: RefCell<Vm> = RefCell::default();
}

#[derive(Default)]
struct Vm {
    offices: Vec<Office>,
    watch: Watch,
    looked: Millis,
}

/// The mail for one service.
struct Office {
    service: Service,
    mail: Rc<RefCell<Mail>>,
    /// Configurations in force that reach this service.
    roots: usize,
}

impl Office {
    fn reaches(&self, service: &Service) -> bool {
        self.service.cluster == service.cluster && self.service.secret == service.secret
    }
}

/// A configuration comes into force.
pub(super) fn open(service: &Service) -> Rc<RefCell<Mail>> {
    VM.with_borrow_mut(|vm| {
        if let Some(office) = vm.offices.iter_mut().find(|office| office.reaches(service)) {
            office.roots += 1;
            return office.mail.clone();
        }
        let mail = Rc::new(RefCell::new(Mail::new()));
        vm.offices.push(Office { service: service.clone(), mail: mail.clone(), roots: 1 });
        mail
    })
}

/// The last stream of a configuration has ended. What it owes the VM's other configurations send, or another VM where there
/// is none. Tells whether this one goes on.
pub(super) fn close(service: &Service) -> bool {
    let offices = VM.with_borrow_mut(|vm| {
        if let Some(office) = vm.offices.iter_mut().find(|office| office.reaches(service)) {
            office.roots = office.roots.saturating_sub(1);
        }
        let is_over = vm.offices.iter().all(|office| office.roots == 0);
        if is_over { std::mem::take(&mut vm.offices) } else { Vec::new() }
    });
    let goes_on = offices.is_empty();
    for Office { service, mail, .. } in offices {
        leave(&service, &mut mail.borrow_mut());
    }
    goes_on
}

/// Mail of configurations that are not in force any more, and how to send it.
pub(super) fn orphans() -> Vec<(Service, Rc<RefCell<Mail>>)> {
    VM.with_borrow_mut(|vm| {
        vm.offices.retain(|office| office.roots > 0 || !office.mail.borrow().is_empty());
        let orphans = vm.offices.iter().filter(|office| office.roots == 0);
        orphans.map(|office| (office.service.clone(), office.mail.clone())).collect()
    })
}

/// Says that this VM lives, and finds out which others do not any more. Gives how many settlements were lost for want of room.
pub(super) fn beat(now: Millis) -> u64 {
    let Some(mails) = VM.with_borrow_mut(|vm| {
        let is_time = now < vm.looked || now.since(vm.looked) >= instances::BEAT_EVERY;
        is_time.then(|| {
            vm.looked = now;
            vm.offices.iter().map(|office| (office.service.cluster.clone(), office.mail.clone())).collect::<Vec<_>>()
        })
    }) else {
        return 0;
    };
    for (cluster, mail) in &mails {
        let mail = mail.borrow();
        host::change_shared(LINES, |lines| Some(instances::beaten(&text(lines), mail.incarnation(), cluster).into()));
    }
    let lines = text(host::shared(LINES));
    let silent = VM.with_borrow_mut(|vm| vm.watch.look(&lines, now));
    for instances::Silent { worker, cluster, silent } in silent {
        let Some(mail) = of(&mails, &cluster) else { continue };
        // Whoever takes the line out reports it.
        let is_mine = host::change_shared(LINES, |lines| {
            let lines = text(lines);
            instances::has(&lines, &worker).then(|| instances::without(&lines, &worker).into())
        });
        if is_mine {
            warn!("an instance of the filter has stopped: the service gives up its calls that wait");
            mail.borrow_mut().has_ended(EndedWorker { worker, seal: None, silent_ms: Some(silent) });
        }
    }
    inherit(&mails)
}

/// Takes over what VMs have left that ended.
fn inherit(mails: &[(String, Rc<RefCell<Mail>>)]) -> u64 {
    if mails.is_empty() || host::shared(LEFT).is_empty() {
        return 0;
    }
    let mut left = Vec::new();
    let is_mine = host::change_shared(LEFT, |bytes| {
        left = bytes;
        (!left.is_empty()).then(Vec::new)
    });
    let taken = if is_mine { text(left) } else { String::new() };
    let legacies = taken.lines().filter_map(|line| serde_json::from_str::<Legacy>(line).ok());
    let lost = legacies.filter_map(|legacy| Some(of(mails, &legacy.cluster)?.borrow_mut().inherit(legacy))).sum();
    if is_mine {
        info!("sluice filter: sends what an instance has left that ended");
    }
    lost
}

/// The mail for a service's cluster, or any.
fn of<'a>(mails: &'a [(String, Rc<RefCell<Mail>>)], cluster: &str) -> Option<&'a Rc<RefCell<Mail>>> {
    let exact = mails.iter().find(|(other, _)| other == cluster);
    exact.or_else(|| mails.first()).map(|(_, mail)| mail)
}

fn leave(service: &Service, mail: &mut Mail) {
    let worker = mail.incarnation().to_owned();
    host::change_shared(LINES, |lines| {
        let lines = text(lines);
        instances::has(&lines, &worker).then(|| instances::without(&lines, &worker).into())
    });
    let Some(legacy) = mail.leave(&service.cluster) else { return };
    let Ok(line) = serde_json::to_string(&legacy) else { return };
    let is_left = host::change_shared(LEFT, |mut left| {
        left.extend_from_slice(line.as_bytes());
        left.push(b'\n');
        (left.len() <= instances::LEFT_MAX_BYTES).then_some(left)
    });
    if !is_left {
        warn!(
            "what an instance of the filter owed the quota service is lost: its calls are charged what they reserved"
        );
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_default()
}
