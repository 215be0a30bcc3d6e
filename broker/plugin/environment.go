package plugin

import (
	"path"
	"runtime"
	"slices"
	"strings"
)

// always are the host's variables that every backend gets, as globs: where programs, files, time and the network are.
var always = []string{"PATH", "HOME", "TMPDIR", "LANG", "TZ", "*_PROXY", "*_proxy", "SSL_CERT_*"}

// alwaysWindows are those without which a process on Windows cannot open a socket or find its files.
var alwaysWindows = []string{"SYSTEMROOT", "SystemRoot", "TEMP", "TMP", "USERPROFILE", "PATHEXT", "Path"}

// reserved are the variables through which go-plugin and the broker talk to a backend. One that came from elsewhere would change how the backend serves, with
// TLS for example, or tell it where the agent is.
var reserved = []string{
	"CREDENTIAL_BROKER_*", "PLUGIN_MIN_PORT", "PLUGIN_MAX_PORT", "PLUGIN_PROTOCOL_VERSIONS", "PLUGIN_CLIENT_CERT", "PLUGIN_UNIX_SOCKET_DIR",
	"PLUGIN_UNIX_SOCKET_GROUP", "PLUGIN_MULTIPLEX_GRPC",
}

// Environment is the environment of a backend: of the host's variables PATH, HOME, TMPDIR, LANG, TZ, *_PROXY, *_proxy, SSL_CERT_* and those whose name matches a glob
// (path.Match) of inherit; then those given as between; then set. A later one of the same name wins. The broker's own variables (CREDENTIAL_BROKER_*) and
// those of go-plugin's protocol are left out, wherever they come from.
func Environment(host, inherit, set []string, between ...string) []string {
	globs := slices.Concat(always, inherit)
	if runtime.GOOS == "windows" {
		globs = append(globs, alwaysWindows...)
	}
	var env []string
	place := map[string]int{}
	put := func(variable string) {
		name, _, ok := strings.Cut(variable, "=")
		if !ok || name == "" || matches(reserved, name) {
			return
		}
		if i, ok := place[name]; ok {
			env[i] = variable
			return
		}
		place[name] = len(env)
		env = append(env, variable)
	}
	for _, variable := range host {
		if name, _, _ := strings.Cut(variable, "="); matches(globs, name) {
			put(variable)
		}
	}
	for _, variable := range between {
		put(variable)
	}
	for _, variable := range set {
		put(variable)
	}
	return env
}

func matches(globs []string, name string) bool {
	return slices.ContainsFunc(globs, func(glob string) bool {
		ok, err := path.Match(glob, name)
		return ok && err == nil
	})
}
