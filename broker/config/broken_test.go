package config

import (
	"strings"
	"testing"
)

// Each text stands after apiVersion and kind, so its first line is the third of the file.
func TestBrokenSettingsAreNamedWithPlaceAndRemedy(t *testing.T) {
	provider := func(setting string) string {
		return "providers:\n- name: a\n  matchImages: [x.io]\n  " + setting + "\n"
	}
	const good = "providers: [{name: a, matchImages: [x.io]}]\n"
	tests := []struct {
		name, text, want string
	}{
		// Fields and types.
		{"an unknown field that is nearly known", provider("matchImage: []"), `a.yaml:6:3: providers[0].matchImage: unknown field; did you mean "matchImages"?`},
		{"an unknown field in the wrong case", provider("inheritenv: []"), `a.yaml:6:3: providers[0].inheritenv: unknown field; did you mean "inheritEnv"?`},
		{"an unknown field", good + "log: {destination: x}\n", `a.yaml:4:7: log.destination: unknown field; known here: level, format, file`},
		{
			"a field of the kubelet's", provider("args: [x]"),
			`a.yaml:6:3: providers[0].args: unknown field; the arguments of a wrapped credential provider belong under config, of backend exec`,
		},
		{"a field twice", provider("timeout: 1s\n  timeout: 2s"), `a.yaml:7:3: providers[0].timeout: the field stands twice, first in line 6; keep one`},
		{"a top-level field twice", good + "timeout: 1s\ntimeout: 2s\n", `a.yaml:5:1: timeout: the field stands twice, first in line 4; keep one`},
		{
			"a field twice in the backend's settings", provider("config: {a: 1, b: {c: 1, c: 2}}"),
			`a.yaml:6:28: providers[0].config.b.c: the field stands twice, first in line 6; keep one`,
		},
		{
			"a field twice among many", provider("config: {a: 1, b: 1, c: 1, d: 1, e: 1, f: 1, g: 1, h: 1, i: 1, j: 1, k: 1, l: 1, m: 1, n: 1, o: 1, p: 1, q: 1, a: 2}"),
			`a.yaml:6:114: providers[0].config.a: the field stands twice, first in line 6; keep one`,
		},
		{"a key that is no string", provider("config: {1: x, true: y}"), `a.yaml:6:12: providers[0].config.1: a key must be a string; put it in quotes
a.yaml:6:18: providers[0].config.true: a key must be a string; put it in quotes`},
		{"a list instead of a string", provider("backend: [exec]"), `a.yaml:6:12: providers[0].backend: must be a string, is a list`},
		{"a string instead of a list", "providers: [{name: a, matchImages: x.io}]\n", `a.yaml:3:36: providers[0].matchImages: must be a list of patterns, is the string "x.io"`},
		{"a mapping instead of a list", "providers: {name: a}\n", `a.yaml:3:12: providers: must be a list of providers, is a mapping`},
		{
			"a number instead of a string", provider("env: [{name: A, value: 1}]"),
			`a.yaml:6:26: providers[0].env[0].value: must be a string, is a number; put it in quotes`,
		},
		{"a word instead of a boolean", good + "agent: {autoStart: yes}\n", `a.yaml:4:20: agent.autoStart: must be true or false, is the string "yes"`},
		{"a provider that is a string", "providers: [ecr]\n", `a.yaml:3:13: providers[0]: must be a mapping with name, backend and matchImages, is the string "ecr"`},
		{"nothing in a list", "providers: [{name: a, matchImages: [~]}]\n", `a.yaml:3:37: providers[0].matchImages[0]: must be a string, is empty`},
		{"settings that are no mapping", provider("config: [1]"), `a.yaml:6:11: providers[0].config: must be a mapping, is a list`},

		// Durations.
		{"a duration without unit", good + "timeout: 45\n", `a.yaml:4:10: timeout: must be a duration, is the number 45; add a unit, as in 45s`},
		{"a duration without unit in quotes", good + "timeout: \"45\"\n", `a.yaml:4:10: timeout: "45" is no duration; write numbers with units, such as 45s, 15m or 1h30m`},
		{"an empty duration", good + "timeout: \"\"\n", `a.yaml:4:10: timeout: "" is no duration; write numbers with units, such as 45s, 15m or 1h30m`},
		{
			"a timeout that the kubelet does not wait for", good + "timeout: 1m\n",
			`a.yaml:4:10: timeout: 1m is longer than 58s, and the kubelet kills its plugin after 60s; write at most 58s`,
		},
		{"no time at all", good + "timeout: 0s\n", `a.yaml:4:10: timeout: 0s is too short; write a duration of at least 1ms`},
		{
			"a negative duration", provider("defaultCacheDuration: -1s"),
			`a.yaml:6:25: providers[0].defaultCacheDuration: -1s is negative; write a duration of at least 0s`,
		},
		{"a negative bound", good + "maxCacheDuration: -5m\n", `a.yaml:4:19: maxCacheDuration: -5m is negative; write a duration of at least 0s`},
		{"a duration that is a list", good + "maxCacheDuration: [1s]\n", `a.yaml:4:19: maxCacheDuration: must be a duration such as 45s, is a list`},

		// Enumerations and paths.
		{
			"an overlap policy in the wrong case", good + "overlapPolicy: first\n",
			`a.yaml:4:16: overlapPolicy: must be one of First, Fallback, is "first"; did you mean "First"?`,
		},
		{"an unknown level", good + "log: {level: trace}\n", `a.yaml:4:14: log.level: must be one of debug, info, warn, error, is "trace"`},
		{"an unknown format", good + "log: {format: 1}\n", `a.yaml:4:15: log.format: must be one of text, json, is 1; put it in quotes: "1"`},
		{"a relative path", good + "log: {file: broker.log}\n", `a.yaml:4:13: log.file: "broker.log" is not an absolute path; begin it with /`},
		{"a path with detours", good + "backendDir: /usr/../opt/\n", `a.yaml:4:13: backendDir: "/usr/../opt/" is not a clean path; write "/opt"`},
		{
			"a socket with a long path", good + "agent: {socket: /" + strings.Repeat("a", 107) + "}\n",
			`a.yaml:4:17: agent.socket: the path has 108 bytes, a unix socket's has at most 107; choose a shorter one, such as /run/credential-broker/agent.sock`,
		},
		{
			"metrics for everyone", good + "agent: {metrics: ':9099'}\n",
			`a.yaml:4:18: agent.metrics: ":9099" is not a loopback address; write one such as 127.0.0.1:9099, or unix:/run/credential-broker/metrics.sock`,
		},
		{
			"metrics on no port", good + "agent: {metrics: 'localhost:0'}\n",
			`a.yaml:4:18: agent.metrics: "localhost:0" has no port between 1 and 65535; write one such as 127.0.0.1:9099, or unix:/run/credential-broker/metrics.sock`,
		},
		{
			"metrics without port", good + "agent: {metrics: localhost}\n",
			`a.yaml:4:18: agent.metrics: "localhost" is no address; write one such as 127.0.0.1:9099, or unix:/run/credential-broker/metrics.sock`,
		},

		// Providers.
		{"no providers", "timeout: 45s\n", `a.yaml:1: providers: at least one provider is required; each has a name, a backend and matchImages`},
		{"an empty list of providers", "providers: []\n", `a.yaml:1: providers: at least one provider is required; each has a name, a backend and matchImages`},
		{"a provider with nothing", "providers:\n- {}\n", `a.yaml:4:3: providers[0].name: is missing; give the provider a name of its own
a.yaml:4:3: providers[0].matchImages: is missing; list the images that this provider has credentials for, such as registry.example.com`},
		{
			"no patterns", "providers: [{name: a, matchImages: []}]\n",
			`a.yaml:3:36: providers[0].matchImages: is empty; list the images that this provider has credentials for, such as registry.example.com`,
		},
		{
			"a pattern that does not parse", "providers: [{name: a, matchImages: [x.io, 'x.io:*']}]\n",
			`a.yaml:3:43: providers[0].matchImages[1]: "x.io:*" is not of the form host[:port][/path]: invalid port ":*" after host`,
		},
		{
			"a name twice", "providers:\n- {name: a, matchImages: [x.io]}\n- {name: a, matchImages: [y.io]}\n",
			`a.yaml:5:10: providers[1].name: the name "a" is taken by the provider at a.yaml:4; choose another`,
		},
		{
			"a name with a slash", "providers: [{name: a/b, backend: a, matchImages: [x.io]}]\n",
			`a.yaml:3:20: providers[0].name: "a/b" has a slash; choose a name without`,
		},
		{
			"a name with a space", "providers: [{name: a b, backend: a, matchImages: [x.io]}]\n",
			`a.yaml:3:20: providers[0].name: "a b" has a space or a character that cannot be printed; choose a name without`,
		},
		{"a name of dots", "providers: [{name: .., backend: a, matchImages: [x.io]}]\n", `a.yaml:3:20: providers[0].name: must not be ".."; choose another`},
		{
			"an empty name", "providers: [{name: '', backend: a, matchImages: [x.io]}]\n",
			`a.yaml:3:20: providers[0].name: must not be empty; give the provider a name of its own`,
		},
		{
			"a name that is no backend's", "providers: [{name: My.ECR, matchImages: [x.io]}]\n",
			`a.yaml:3:13: providers[0].backend: is missing, and the provider's name "My.ECR" is no backend's name; name the backend, such as exec`,
		},
		{
			"a backend outside its directory", provider("backend: ../evil"),
			`a.yaml:6:12: providers[0].backend: "../evil" is neither a backend's name (a-z, 0-9 and - between them) nor an absolute path`,
		},
		{"a backend with a detour", provider("backend: /opt/../evil"), `a.yaml:6:12: providers[0].backend: "/opt/../evil" is not a clean path; write "/evil"`},
		{
			"a backend ending in a hyphen", provider("backend: ecr-"),
			`a.yaml:6:12: providers[0].backend: "ecr-" is neither a backend's name (a-z, 0-9 and - between them) nor an absolute path`,
		},
		{"a variable with =", provider("env: [{name: A=B, value: x}]"), `a.yaml:6:16: providers[0].env[0].name: "A"… is no variable's name; leave out = and NUL, and put the value into value`},
		{"a variable without name", provider("env: [{value: x}]"), `a.yaml:6:9: providers[0].env[0].name: is missing; name the variable`},
		{
			"a variable twice", provider("env:\n  - {name: A, value: x}\n  - {name: A, value: y}"),
			`a.yaml:8:12: providers[0].env[1].name: the variable "A" stands twice, first in line 7; keep one`,
		},
		{
			"a variable of the handshake", provider("env: [{name: PLUGIN_UNIX_SOCKET_DIR, value: x}, {name: CREDENTIAL_BROKER_BACKEND}]"),
			`a.yaml:6:16: providers[0].env[0].name: "PLUGIN_UNIX_SOCKET_DIR" is how the broker speaks to its backend; remove it
a.yaml:6:58: providers[0].env[1].name: "CREDENTIAL_BROKER_BACKEND" is how the broker speaks to its backend; remove it`,
		},
		{"a value with NUL", provider(`env: [{name: A, value: "\0"}]`), `a.yaml:6:26: providers[0].env[0].value: a variable's value has no NUL byte; remove it`},
		{"a glob that does not parse", provider("inheritEnv: ['AWS_[']"), `a.yaml:6:16: providers[0].inheritEnv[0]: "AWS_[" does not parse as a glob; close its brackets`},
		{"a glob with a value", provider("inheritEnv: [A=b]"), `a.yaml:6:16: providers[0].inheritEnv[0]: "A=b" is no variable's name; leave out what comes with =`},
		{"an empty glob", provider("inheritEnv: ['']"), `a.yaml:6:16: providers[0].inheritEnv[0]: must not be empty; name a variable, or a glob such as AWS_*`},
		{"a short digest", provider("sha256: [abc]"), `a.yaml:6:12: providers[0].sha256[0]: "abc" is no SHA-256 digest; write the 64 hexadecimal digits that sha256sum prints`},
		{"a user with a group", provider("user: nobody:nogroup"), `a.yaml:6:9: providers[0].user: "nobody:nogroup" is no user; write a name or a number, without a group`},
		{"a user's number below zero", provider("user: -1"), `a.yaml:6:9: providers[0].user: -1 is no user's number; write one from 0 to 4294967294, or a name`},
		{"a user's number with a zero before it", provider("user: 0100"), `a.yaml:6:9: providers[0].user: 0100 is no user's number; write one from 0 to 4294967294, or a name`},

		// Token attributes.
		{
			"no audience", provider("tokenAttributes: {cacheType: Token}"),
			`a.yaml:6:20: providers[0].tokenAttributes.serviceAccountTokenAudience: is missing; name the audience of the token that the backend takes`,
		},
		{
			"an empty audience", provider("tokenAttributes: {serviceAccountTokenAudience: ''}"),
			`a.yaml:6:50: providers[0].tokenAttributes.serviceAccountTokenAudience: must not be empty`,
		},
		{
			"an unknown cache type", provider("tokenAttributes: {serviceAccountTokenAudience: x, cacheType: Pod}"),
			`a.yaml:6:64: providers[0].tokenAttributes.cacheType: must be one of Token, ServiceAccount, is "Pod"`,
		},
		{
			"required keys without requiring an account", provider("tokenAttributes: {serviceAccountTokenAudience: x, requiredServiceAccountAnnotationKeys: [a]}"),
			`a.yaml:6:91: providers[0].tokenAttributes.requiredServiceAccountAnnotationKeys: needs requireServiceAccount: true; set it, or list the keys as optional ones`,
		},
		{
			"keys in both lists", provider("tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [a], optionalServiceAccountAnnotationKeys: [b, a]}"),
			`a.yaml:6:167: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[1]: "a" is among the required keys too; keep it in one list`,
		},
		{
			"keys twice and keys that are none", provider("tokenAttributes: {serviceAccountTokenAudience: x, optionalServiceAccountAnnotationKeys: [a, a, -b, a/b/c, 'a_b/c', '']}"),
			`a.yaml:6:95: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[1]: "a" stands twice; keep one
a.yaml:6:98: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[2]: "-b" is no annotation key; write one such as example.com/role
a.yaml:6:102: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[3]: "a/b/c" is no annotation key; write one such as example.com/role
a.yaml:6:109: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[4]: "a_b/c" is no annotation key; write one such as example.com/role
a.yaml:6:118: providers[0].tokenAttributes.optionalServiceAccountAnnotationKeys[5]: "" is no annotation key; write one such as example.com/role`,
		},

		// Mirrors.
		{"a mirror without endpoint", provider("mirrors: [{source: docker.io}]"), `a.yaml:6:13: providers[0].mirrors[0].endpoint: is missing; write host[:port][/path]`},
		{"a mirror with scheme and glob", provider("mirrors: [{source: '*.io', endpoint: https://m.io/x}]"), `a.yaml:6:22: providers[0].mirrors[0].source: "*.io" is a glob; write one host[:port][/path]
a.yaml:6:40: providers[0].mirrors[0].endpoint: "https://m.io/x" has a scheme; write "m.io/x"`},
		{"a mirror with tag and closing slash", provider("mirrors: [{source: 'docker.io/a:1', endpoint: m.io/}]"), `a.yaml:6:22: providers[0].mirrors[0].source: "docker.io/a:1" has a tag or digest; leave it out
a.yaml:6:49: providers[0].mirrors[0].endpoint: "m.io/" ends with a slash; leave it out`},
		{"a mirror of itself", provider("mirrors: [{source: m.io, endpoint: m.io}]"), `a.yaml:6:13: providers[0].mirrors[0]: source and endpoint are the same; remove the mirror`},
		{
			"two mirrors of one source", provider("mirrors: [{source: s.io, endpoint: m.io}, {source: s.io, endpoint: n.io}]"),
			`a.yaml:6:54: providers[0].mirrors[1].source: "s.io" has a mirror already; keep one`,
		},

		// Settings of the backend that JSON cannot say.
		{
			"numbers that readers disagree on", provider("config: {a: 0777, b: 012345678901, c: 1_000, d: .inf, e: 089}"),
			`a.yaml:6:15: providers[0].config.a: 0777 is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits
a.yaml:6:24: providers[0].config.b: 012345678901 is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits
a.yaml:6:41: providers[0].config.c: 1_000 is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits
a.yaml:6:51: providers[0].config.d: .inf is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits
a.yaml:6:60: providers[0].config.e: 089 is a number that not every reader understands alike; put a string in quotes, write a number in plain decimal digits`,
		},

		// What YAML has besides.
		{
			"an alias without anchor", provider("env: *env"),
			`a.yaml:6: alias *env has no anchor &env before it; define the anchor first, or write the value out`,
		},
		{
			"an alias inside its own anchor", provider("config: &a {b: *a}"),
			`a.yaml:6:18: providers[0].config.b: alias *a stands inside its own anchor; write the value out`,
		},
		{"an alias for a value of the wrong kind", provider("matchImages: &images [x.io]\n- name: b\n  matchImages: [y.io]\n  backend: *images"), `a.yaml:6:3: providers[0].matchImages: the field stands twice, first in line 5; keep one
a.yaml:9:12: providers[1].backend: must be a string, is a list`},
		{
			"a merge key", provider("config: &a {b: 1}\n- <<: *a\n  name: b\n  matchImages: [x.io]"),
			`a.yaml:7:3: providers[1].<<: merge keys are not read; write the fields out, or use an alias for a whole value`,
		},
		{"a tag", provider("user: !!str 1000"), `a.yaml:6:9: providers[0].user: tag !!str is not read; leave it out, and put a string in quotes`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, head+tt.text)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestBrokenFilesAreNamedWithPlaceAndRemedy(t *testing.T) {
	const provider = "providers: [{name: a, matchImages: [x.io]}]\n"
	const empty = `a.yaml:1: the file is empty; a configuration begins with "apiVersion: credential-broker.io/v1alpha1" and "kind: BrokerConfig"`
	tests := []struct {
		name, text, want string
	}{
		{"an empty file", "", empty},
		{"a file of comments", "# nothing\n", empty},
		{"a file with one empty document", "---\n", empty},
		{"a list", "- a\n", `a.yaml:1:1: must be a mapping that begins with "apiVersion: credential-broker.io/v1alpha1" and "kind: BrokerConfig", is a list`},
		{"no version and no kind, and a mistake", "timeout: 45\n" + provider, `a.yaml:1:1: apiVersion: is missing; write "apiVersion: credential-broker.io/v1alpha1"
a.yaml:1:1: kind: is missing; write "kind: BrokerConfig"
a.yaml:1:10: timeout: must be a duration, is the number 45; add a unit, as in 45s`},
		{
			"another version", "apiVersion: credential-broker.io/v2\nkind: BrokerConfig\nnew: 1\n",
			`a.yaml:1:13: apiVersion: must be "credential-broker.io/v1alpha1", is the string "credential-broker.io/v2"`,
		},
		{
			"the kubelet's configuration", "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- apiVersion: x\n",
			`a.yaml:1:13: apiVersion: must be "credential-broker.io/v1alpha1", is the string "kubelet.config.k8s.io/v1"
a.yaml:2:7: kind: this is the kubelet's configuration; turn it into the broker's with "credential-broker migrate a.yaml"`,
		},
		{"two documents", head + provider + "---\n" + head, `a.yaml:5:1: a second document begins here; one file holds one document, a directory holds several files`},
		{"a tab that indents", head + "log:\n\tlevel: info\n", `a.yaml:4: a tab indents this line, which YAML does not allow; use spaces`},
		{"an open bracket", head + "providers: [\n", `a.yaml:3: not YAML: did not find expected node content; look at this line and the next ones`},
		{"a colon too many", head + "timeout: a: b\n", `a.yaml:3: not YAML: mapping values are not allowed in this context; look at this line and the next ones`},
		{"an open quote", head + "timeout: \"45s\n", `a.yaml:3: not YAML: found unexpected end of stream; look at this line and the next ones`},
		{"bytes that are not UTF-8", head + "log: {file: /\xff}\n", `a.yaml:3: byte 0xff is not UTF-8; save the file as UTF-8`},
		{"UTF-16", "\xff\xfea\x00", `a.yaml:1: the file is UTF-16; save it as UTF-8`},
		{"a NUL byte", head + "\x00", `a.yaml:3: character U+0000 cannot stand in a configuration; in double quotes write \u0000`},
		{"lines of an old Mac", strings.ReplaceAll(head+provider, "\n", "\r"), `a.yaml:1: a carriage return stands without a line feed; save the file with plain ends of lines`},
		{
			"a line that is indented too far", head + provider + "log:\n  level: info\n   format: text\n",
			`a.yaml:6: not YAML: mapping values are not allowed in this context; look at this line and the next ones`,
		},
		{
			"a bracket that is not closed, further down", head + "timeout: 45s\nproviders:\n- name: a\n  matchImages: [x.io\n  timeout: 5s\n",
			`a.yaml:6: not YAML: did not find expected ',' or ']'; look at this line and the next ones`,
		},
		{
			"a key without its colon", head + "timeout: 45s\nproviders\n",
			`a.yaml:4: not YAML: could not find expected ':'; look at this line and the next ones`,
		},
		{
			"a character that ends lines in old YAML", head + "log: {file: \"/\u2028\"}\n",
			`a.yaml:3: character U+2028 cannot stand in a configuration; in double quotes write \u2028`,
		},
		{
			"deep brackets", head + "providers: [{name: a, matchImages: [x.io], config: {a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}}]",
			`a.yaml:3:90: providers[0].config.a` + strings.Repeat("[0]", 34) + `: values are nested more than 64 deep; no setting needs that`,
		},
		{"brackets deeper than any parser takes", head + "a: " + strings.Repeat("[", 100_000), `a.yaml:3: not YAML: exceeded max depth of 10000; look at this line and the next ones`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := load(t, tt.text)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestProblemsOfAllFilesComeAtOnceInTheirOrder(t *testing.T) {
	_, err := load(t,
		head+"timeout: 45\nproviders:\n- {name: a, matchImages: [x.io], colour: red}\n- {name: b}\n",
		"a: [\n",
		head+"timeout: 30s\nlog: {level: loud}\nproviders:\n- {name: a, matchImages: [x.io]}\n- {name: c, matchImages: ['x.io:y']}\n",
	)
	want := `a.yaml:3:10: timeout: must be a duration, is the number 45; add a unit, as in 45s
a.yaml:5:34: providers[0].colour: unknown field; known here: name, backend, matchImages, defaultCacheDuration, timeout, env, inheritEnv, sha256, user, tokenAttributes, mirrors, config
a.yaml:6:3: providers[1].matchImages: is missing; list the images that this provider has credentials for, such as registry.example.com
b.yaml:1: not YAML: did not find expected node content; look at this line and the next ones
c.yaml:3:10: timeout: the setting stands in two files, first in a.yaml:3; keep one: only providers may stand in several
c.yaml:4:14: log.level: must be one of debug, info, warn, error, is "loud"
c.yaml:6:10: providers[0].name: the name "a" is taken by the provider at a.yaml:5; choose another
c.yaml:7:27: providers[1].matchImages[0]: "x.io:y" is not of the form host[:port][/path]: invalid port ":y" after host`
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestOddSettingsAreWarnings(t *testing.T) {
	const good = "providers: [{name: a, matchImages: [x.io]}]\n"
	tests := []struct {
		name, text, want string
	}{
		{"nothing odd", good, ""},
		{
			"a pattern with a scheme", "providers: [{name: a, matchImages: ['https://x.io', x.io]}]\n",
			`a.yaml:3:37: providers[0].matchImages[0]: "https://x.io": a pattern has no scheme, so this matches no image: write "x.io"`,
		},
		{"a pattern twice", "providers: [{name: a, matchImages: [x.io, x.io]}]\n", `a.yaml:3:43: providers[0].matchImages[1]: "x.io" stands twice; remove one`},
		{"a field without value", good + "log:\n  level:\n", `a.yaml:5:3: log.level: the field has no value and counts as not set; give it one or remove it`},
		{
			"an agent to start that nobody can reach", good + "agent: {autoStart: true}\n",
			`a.yaml:4:8: agent.autoStart: nothing is started without a socket; set agent.socket, --agent or CREDENTIAL_BROKER_AGENT`,
		},
		{
			"a share longer than the whole", "providers: [{name: a, matchImages: [x.io], timeout: 50s}]\n",
			`a.yaml:3:53: providers[0].timeout: 50s is longer than the whole request's timeout, which ends it after 45s; shorten it or raise timeout`,
		},
		{"a default share longer than the whole", good + "timeout: 5s\n", ""},
		{
			"a mirror of index.docker.io", "providers: [{name: a, matchImages: [x.io], mirrors: [{source: index.docker.io, endpoint: m.io}]}]\n",
			`a.yaml:3:54: providers[0].mirrors[0]: a container runtime that falls back from m.io to index.docker.io may offer these credentials to index.docker.io; make sure that it does not, or that they may be seen there
a.yaml:3:63: providers[0].mirrors[0].source: "index.docker.io": images of Docker Hub are asked for as docker.io/…, so this matches no image: write "docker.io"`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := load(t, head+tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Warnings.Error(); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAThousandProblemsAreCutShort(t *testing.T) {
	_, err := load(t, head+strings.Repeat("a: b\n", 1000))
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 201 || lines[200] != "a.yaml:203: 800 more problems begin here; mend those above first" {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestAliasesOfLongTextsAreRefused(t *testing.T) {
	_, err := load(t, head+"providers:\n- name: a\n  matchImages: [x.io]\n  config:\n    a: &a "+strings.Repeat("x", 100_000)+"\n    b: ["+strings.Repeat("*a, ", 100_000)+"]\n")
	const want = "a.yaml:8:49: providers[0].config.b[10]: the configuration is too large with its aliases written out; use fewer"
	if err == nil || err.Error() != want {
		t.Errorf("got  %.500v\nwant %s", err, want)
	}
}

func TestAliasesThatMultiplyAreRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString(head + "providers:\n- name: a\n  matchImages: [x.io]\n  config:\n    a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n")
	for i := '1'; i <= '9'; i++ {
		b.WriteString("    a" + string(i) + ": &a" + string(i) + " [" + strings.Repeat("*a"+string(i-1)+", ", 10) + "]\n")
	}
	_, err := load(t, b.String())
	if err == nil || !strings.HasSuffix(err.Error(), "the configuration is too large with its aliases written out; use fewer") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %.500v", err)
	}
}
