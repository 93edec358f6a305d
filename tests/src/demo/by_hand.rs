//! Where to look and what to paste, once the story is told.

use super::page::Page;
use crate::stack::{MODEL, Stack};
use anyhow::Result;

/// Says so when a documented port was taken by somebody else.
pub(super) fn tell_unusual_ports(page: &Page, stack: &Stack) {
    let ports = [
        ("8080", "traffic", stack.envoy.base()),
        ("9901", "Envoy's admin pages", stack.envoy.admin_base()),
        ("8081", "the operators' pages", stack.operators().base().to_owned()),
    ];
    for (port, what, base) in ports {
        if !base.ends_with(&format!(":{port}")) {
            page.warning(&format!("  Port {port} is taken by another program: {what} is at {base}"));
        }
    }
}

pub(super) fn tell(page: &Page, stack: &Stack) -> Result<()> {
    let (traffic, admin) = (stack.envoy.base(), stack.envoy.admin_base());
    let operators = stack.operators();
    page.title("Now you (everything runs until Ctrl-C)");
    page.line(&format!("  Metrics        {}/metrics", operators.base()));
    page.line(&format!("  Envoy's admin  {admin}"));
    page.line("");
    page.line("  Keys made for this run; paste them into another terminal:");
    page.line("");
    for tenant in &stack.tenants {
        let name = tenant.id.to_uppercase().replace('-', "_");
        page.line(&format!("export {name}={}", stack.key(&tenant.id)?));
    }
    page.line(&format!("export OPERATOR={}", operators.token()));
    page.line("");
    page.line("  A call, and one that streams:");
    page.line("");
    tell_call(page, &traffic, "DEPT_A", "\"max_tokens\":40");
    tell_call(page, &traffic, "FREE", "\"max_tokens\":40,\"stream\":true");
    page.line("  Who waits where:");
    page.line("");
    let stats = format!("{}/admin/scheduler/stats", operators.base());
    page.line(&format!("curl -s -H \"authorization: Bearer $OPERATOR\" {stats}"));
    page.line("");
    Ok(())
}

fn tell_call(page: &Page, traffic: &str, key: &str, options: &str) {
    page.line(&format!("curl -i {traffic}/v1/chat/completions -H \"authorization: Bearer ${key}\" \\"));
    page.line("  -H 'content-type: application/json' \\");
    page.line(&format!("  -d '{{\"model\":\"{MODEL}\",{options},"));
    page.line("       \"messages\":[{\"role\":\"user\",\"content\":\"What is a sluice gate for?\"}]}'");
    page.line("");
}
