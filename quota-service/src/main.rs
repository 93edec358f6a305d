//! The command line: arguments, exit codes, signals.

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use quota_service::identity::{hash_foreign, issue};
use quota_service::role::Role;
use quota_service::secret::Secret;
use quota_service::secrets::Secrets;
use quota_service::settings::{LEAST_SECRET_BYTES, Settings};
use quota_service::{Listeners, run};
use sluice_policy::config::reader::{ConfigError, ConfigErrors};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// EX_USAGE of sysexits.h: what is wrong is the configuration, and restarting will not mend it.
const BAD_CONFIG: u8 = 64;

/// Sluice's quota sidecar: admits, queues and settles calls to GPU model servers.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the filter and the operators until SIGTERM or SIGINT.
    Serve {
        #[command(flatten)]
        file: ConfigFile,
        /// What this process is for.
        #[arg(long, value_enum, default_value_t)]
        role: Role,
    },
    /// Read a configuration and tell everything that is wrong with it; exit 64 if anything is.
    CheckConfig(ConfigFile),
    /// Play a trace of calls against a configuration, or against two, and tell who waited and who was refused.
    Simulate(quota_service::simulate::SimulateArgs),
    /// Tell what the ledger's Redis holds of pools and tenants: who holds what and until when, and who waits.
    Inspect(quota_service::inspect::InspectArgs),
    /// Make API keys. What is printed as YAML goes under the tenant's `keys`.
    #[command(subcommand)]
    Key(KeyCommand),
}

#[derive(Args)]
struct ConfigFile {
    /// The YAML configuration; relative paths in it are relative to its folder.
    #[arg(long)]
    config: PathBuf,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make a new key: it is shown once, and kept nowhere.
    New {
        #[command(flatten)]
        file: ConfigFile,
        /// The tenant it will belong to; it must be in the configuration.
        #[arg(long)]
        tenant: String,
        /// What operators will call it, like `dept_a_web`.
        #[arg(long)]
        name: String,
    },
    /// Print the entry for a key that somebody else has made; it is read from standard input.
    Hash {
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long)]
        name: String,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve { file, role } => serve(role, &file),
        Command::CheckConfig(file) => check_config(&file),
        Command::Simulate(args) => quota_service::simulate::run(&args),
        Command::Inspect(args) => quota_service::inspect::run(&args),
        Command::Key(command) => key(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigErrors>() => {
            eprintln!("the configuration is refused:\n{error}");
            ExitCode::from(BAD_CONFIG)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(role: Role, file: &ConfigFile) -> anyhow::Result<()> {
    let settings = Settings::load(&file.config)?;
    let secrets = Secrets::open(&settings)?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("SLUICE_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listeners = Listeners::bind(&settings, role).await?;
        let (stop, stopped) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (count, hang_ups) = watch::channel(0);
        let mut hang_up = signal(SignalKind::hangup())?;
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                count.send_modify(|count| *count += 1);
            }
        });
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = stop.send(true);
        });
        run(role, settings, secrets, listeners, hang_ups, stopped).await
    })
}

fn check_config(file: &ConfigFile) -> anyhow::Result<()> {
    let settings = Settings::load(&file.config)?;
    let policy = &settings.policy;
    println!("{} is sound: {} pools, {} tenants", file.config.display(), policy.pools.len(), policy.tenants.len());
    Ok(())
}

fn key(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::New { file, tenant, name } => {
            let settings = Settings::load(&file.config)?;
            let known = settings.policy.tenants.keys().any(|id| id.as_str() == tenant);
            anyhow::ensure!(known, "there is no tenant {tenant:?} in {}", file.config.display());
            check_name(&name)?;
            let (version, pepper) = newest_pepper(&settings)?;
            let issued = issue((version, &pepper)).map_err(anyhow::Error::msg)?;
            eprintln!("the key, shown only now, and its entry for the `keys` of {tenant}:");
            println!("{}", issued.key.expose());
            println!("- {{name: {name}, id: {}, hmac: \"{}\"}}", issued.id, issued.hmac);
        }
        KeyCommand::Hash { file, name } => {
            let settings = Settings::load(&file.config)?;
            check_name(&name)?;
            let (version, pepper) = newest_pepper(&settings)?;
            let mut key = String::new();
            std::io::stdin().read_to_string(&mut key).context("the key is read from standard input")?;
            let key = Secret::new(key.trim_end_matches(['\n', '\r']).to_owned());
            anyhow::ensure!(!key.expose().is_empty(), "standard input holds no key");
            let hmac = hash_foreign((version, &pepper), key.expose()).map_err(anyhow::Error::msg)?;
            println!("- {{name: {name}, hmac: \"{hmac}\"}}");
        }
    }
    Ok(())
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let sound = sluice_policy::config::reader::is_name(name);
    anyhow::ensure!(sound, "--name must be 1 to 63 of a-z, A-Z, 0-9, '.', '_', '-', found {name:?}");
    Ok(())
}

fn newest_pepper(settings: &Settings) -> anyhow::Result<(u32, Secret)> {
    let (&version, file) = settings.peppers.last_key_value().context("identity.peppers names no pepper")?;
    let refuse = |problem| ConfigErrors(vec![ConfigError { path: "identity.peppers".to_owned(), problem }]);
    let pepper = Secret::from_file(file, LEAST_SECRET_BYTES);
    Ok((version, pepper.map_err(|problem| refuse(format!("{}: {problem}", file.display())))?))
}
