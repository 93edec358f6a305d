//! A script and one call of it: as `redis::Script`, except that a server without the script is sent its text.

use redis::{Cmd, ToRedisArgs, cmd};

/// A Lua script with the hash that Redis knows it by.
pub struct Lua {
    text: &'static str,
    hash: String,
}

impl Lua {
    #[must_use]
    pub fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Begins a call on the one key that the script may touch.
    #[must_use]
    pub fn on(&self, key: String) -> LuaCall<'_> {
        self.on_all(vec![key])
    }

    /// Begins a call on several keys, of which a cluster takes one only: [`super::Link::keys_at_once`].
    #[must_use]
    pub fn on_all(&self, keys: Vec<String>) -> LuaCall<'_> {
        LuaCall { lua: self, keys, arguments: Vec::new() }
    }
}

/// A call of a script, ready to be sent, and sent again.
pub struct LuaCall<'a> {
    lua: &'a Lua,
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl LuaCall<'_> {
    /// Adds to `ARGV`.
    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    pub(super) fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.lua.hash)
    }

    pub(super) fn by_text(&self) -> Cmd {
        self.command("EVAL", self.lua.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_call_differ_only_in_how_they_name_the_script() {
        let lua = Lua::new("return 1");
        let mut call = lua.on("k".to_owned());
        call.arg(7_u64).arg("x");
        let words = |command: &Cmd| String::from_utf8_lossy(&command.get_packed_command()).into_owned();
        assert_eq!(
            words(&call.by_text()),
            "*6\r\n$4\r\nEVAL\r\n$8\r\nreturn 1\r\n$1\r\n1\r\n$1\r\nk\r\n$1\r\n7\r\n$1\r\nx\r\n"
        );
        assert!(
            words(&call.by_hash())
                .starts_with("*6\r\n$7\r\nEVALSHA\r\n$40\r\ne0e1f9fabfc9d4800c877a703b823ac0578ff8db\r\n")
        );
    }
}
