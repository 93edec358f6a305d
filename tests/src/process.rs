//! A component is a process of its own group, with its output in a file, that never outlives the test.
//!
//! Three things see to that: `Drop` kills the group; `setpriv --pdeathsig` has the kernel kill it when the test
//! itself is killed; and because the kernel looks at the *thread* that forked, all are forked from one thread that
//! lives as long as the process.

use crate::wait::wait_until;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

/// What a failed test prints of every component's log.
const TAIL_LINES: usize = 80;

pub struct Component {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Component {
    /// Starts `command` with both outputs appended to `log`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(name: &str, command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = tied_to_us(command);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = fork(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_path_buf() })
    }

    /// The process that does the work: what ties it to us has become it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the component answers, or says why it never will.
    ///
    /// # Errors
    /// When it exits or the deadline passes; the error carries the end of its log.
    pub async fn ready<Fut>(&mut self, deadline: Duration, mut answers: impl FnMut() -> Fut) -> Result<()>
    where
        Fut: Future<Output = bool>,
    {
        let child = &mut self.child;
        let mut exited = None;
        let waited = wait_until("the component is ready", deadline, || {
            exited = child.try_wait().ok().flatten();
            let gone = exited.is_some();
            let answer = answers();
            async move { gone || answer.await }
        })
        .await;
        match (waited, exited) {
            (Ok(_), None) => Ok(()),
            (_, Some(status)) => {
                bail!("{} ended with {status} instead of starting:\n{}", self.name, self.log_tail())
            }
            (Err(error), None) => bail!("{}: {error}\n{}", self.name, self.log_tail()),
        }
    }

    /// Sends a signal to the component and whatever it started. With SIGSTOP it waits until the component stands still: on
    /// a busy machine its threads answer for a while after the signal.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let group = self.group()?;
        killpg(group, signal).with_context(|| format!("cannot send {signal} to {}", self.name))?;
        if signal == Signal::SIGSTOP {
            // Its end would be told as well, and stays to be waited for.
            let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            waitid(Id::Pid(group), stopped).with_context(|| format!("{} does not stop", self.name))?;
        }
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Waits until the component has ended by itself.
    ///
    /// # Errors
    /// When it still runs at the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        crate::wait::wait_for("the component has ended", deadline, || {
            let status = child.try_wait().ok().flatten();
            async move { status }
        })
        .await
        .with_context(|| format!("{} does not end", self.name))
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn group(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("──── {} ({})\n{}", self.name, self.log.display(), self.log_tail());
        }
        self.kill();
    }
}

/// Wraps the command so that the kernel kills the program when we die. `setpriv` replaces itself by the program, so
/// the pid stays right; where it does not exist the command runs as it is.
fn tied_to_us(command: Command) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        return command;
    }
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        tied.current_dir(folder);
    }
    tied
}

type Fork = (Command, Sender<io::Result<Child>>);

fn fork(command: Command) -> Result<Child> {
    static FORKER: OnceLock<Sender<Fork>> = OnceLock::new();
    let forker = FORKER.get_or_init(|| {
        let (sender, orders) = channel::<Fork>();
        std::thread::spawn(move || {
            for (mut command, reply) in orders {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, child) = channel();
    forker.send((command, reply))?;
    Ok(child.recv()??)
}
