package fast

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cmdline is how /proc/self/cmdline has arguments.
func cmdline(arguments ...string) string {
	return "credential-broker\x00" + strings.Join(append(arguments, ""), "\x00")
}

func TestArgumentsThatTheEarlyPathUnderstands(t *testing.T) {
	for name, test := range map[string]struct {
		arguments []string
		want      Arguments
	}{
		"none": {nil, Arguments{}},
		"with values of their own": {
			[]string{"--config", "/c", "--backend-dir", "/b", "--audience", "a", "--agent", "/s"},
			Arguments{Config: "/c", BackendDir: "/b", Audience: "a", HasAudience: true, Agent: "/s", HasAgent: true},
		},
		"with joined values": {
			[]string{"--config=/c", "--backend-dir=/b", "--audience=a=b", "--agent=/s"},
			Arguments{Config: "/c", BackendDir: "/b", Audience: "a=b", HasAudience: true, Agent: "/s", HasAgent: true},
		},
		"empty audience":                     {[]string{"--audience", ""}, Arguments{HasAudience: true}},
		"empty agent, joined":                {[]string{"--agent="}, Arguments{HasAgent: true}},
		"the last of two wins":               {[]string{"--config=/a", "--config", "/b"}, Arguments{Config: "/b"}},
		"the last wins though it is empty":   {[]string{"--config=/a", "--config="}, Arguments{}},
		"a value that looks like a flag":     {[]string{"--config", "--agent"}, Arguments{Config: "--agent"}},
		"a value that is the end of options": {[]string{"--audience", "--"}, Arguments{Audience: "--", HasAudience: true}},
	} {
		got, ok := ParseArguments(cmdline(test.arguments...))
		if !ok || !cmp.Equal(got, test.want) {
			t.Errorf("%s: understood: %t; %s", name, ok, cmp.Diff(test.want, got))
		}
	}
}

func TestOnlyTheWholeNameIsDockersHelper(t *testing.T) {
	for _, program := range []string{"", "broker", "/", "not-docker-credential-broker", "docker-credential-broker/credential-broker", "docker-credential-broker.old", "credential-broker-docker"} {
		if _, ok := ParseArguments(program + "\x00--agent=/s\x00"); !ok {
			t.Errorf("the kubelet's plugin was not known by the name %q", program)
		}
	}
}

func TestArgumentsThatAreForMain(t *testing.T) {
	for name, line := range map[string]string{
		"nothing at all":          "",
		"a line that is cut off":  "credential-broker",
		"an argument cut off":     "credential-broker\x00--config=/c",
		"a subcommand":            cmdline("validate"),
		"behind a flag":           cmdline("--config", "/c", "get", "registry.example/app"),
		"--help":                  cmdline("--help"),
		"-h":                      cmdline("-h"),
		"a short flag":            cmdline("-c", "/c"),
		"one dash":                cmdline("-agent", "/s"),
		"three dashes":            cmdline("---config", "/c"),
		"a missing value":         cmdline("--config"),
		"another flag":            cmdline("--no-agent"),
		"an abbreviation":         cmdline("--conf", "/c"),
		"another case":            cmdline("--Config", "/c"),
		"end of options":          cmdline("--"),
		"an empty argument":       cmdline(""),
		"one at the end":          cmdline("--config", "/c", ""),
		"an equals sign":          cmdline("--=x"),
		"Docker's helper":         "docker-credential-broker\x00",
		"by its path, with flags": "/usr/bin/docker-credential-broker\x00--agent=/s\x00",
	} {
		if got, ok := ParseArguments(line); ok {
			t.Errorf("%s was understood: %+v", name, got)
		}
	}
}
