package image

import (
	"strings"
	"testing"
)

func TestMatchFollowsTheKubeletsRules(t *testing.T) {
	tests := []struct {
		name           string
		pattern, image string
		match, host    bool
		why            string
	}{
		{"an equal host matches every path", "registry.io", "registry.io/a/b", true, true, ""},
		{"a path is a prefix", "registry.io/team", "registry.io/team/app", true, true, ""},
		{"a path is a prefix byte by byte, not part by part", "registry.io/team", "registry.io/teamfoo", true, true, ""},
		{"a path with its closing slash keeps to its part", "registry.io/team/", "registry.io/teamfoo", false, true, `path "/team/" is no prefix of "/teamfoo"`},
		{"another path does not match", "registry.io/team", "registry.io/other/app", false, true, `path "/team" is no prefix of "/other/app"`},
		{"a star stands for one label", "*.registry.io", "eu.registry.io/a", true, true, ""},
		{"a star does not stand for two labels", "*.registry.io", "a.eu.registry.io/a", false, false, "pattern has 3 host labels, image has 4"},
		{"a star does not stand for no label", "*.registry.io", "registry.io/a", false, false, "pattern has 3 host labels, image has 2"},
		{"a host is not matched by the beginning of another", "registry.io", "registry.io.evil/a", false, false, "pattern has 2 host labels, image has 3"},
		{"one label is called one label", "localhost", "registry.io/a", false, false, "pattern has 1 host label, image has 2"},
		{"part of a label may be a glob", "eu-*.registry.io", "eu-west.registry.io/a", true, true, ""},
		{"a label that differs", "bar*.io", "foo.io/a", false, false, `label "foo" does not match "bar*"`},
		{"a host is compared with its case", "Registry.io", "registry.io/a", false, false, `label "registry" does not match "Registry"`},
		{"a port must be equal", "registry.io:5000", "registry.io:5000/a", true, true, ""},
		{"a port in the pattern only", "registry.io:5000", "registry.io/a", false, false, "pattern has port 5000, image has no port"},
		{"a port in the image only", "registry.io", "registry.io:5000/a", false, false, "pattern has no port, image has port 5000"},
		{"443 is not the absence of a port", "registry.io:443", "registry.io/a", false, false, "pattern has port 443, image has no port"},
		{
			"a pattern with a scheme matches nothing", "https://registry.io", "registry.io/a", false, false,
			`pattern has 1 host label, image has 2 (a pattern has no scheme, so this matches no image: write "registry.io")`,
		},
		{
			"a glob in the path matches nothing", "registry.io/team/*", "registry.io/team/app", false, true,
			`path "/team/*" is no prefix of "/team/app" (the path is a prefix, not a glob, so this matches no image: write "registry.io/team/")`,
		},
		{
			"a pattern that is no URL matches nothing", "registry.io:port", "registry.io/a", false, false,
			`the pattern is not of the form host[:port][/path]: invalid port ":port" after host`,
		},
		{
			"an image that is no URL is matched by nothing", "registry.io", "registry.io:port/a", false, false,
			`the image is not of the form host[:port]/path: invalid port ":port" after host`,
		},
		{
			"a glob that does not parse matches nothing", `regis\`, `regis/a`, false, false,
			`the pattern is not of the form host[:port][/path]: invalid character "\\" in host name`,
		},
		{"an IPv6 host with a port matches", "[::1]:5000", "[::1]:5000/a", true, true, ""},
		{
			"an IPv6 host without a port is a glob to the kubelet", "[::1]", "[::1]/a", false, false,
			`label "[::1]" does not match "[::1]" (the brackets of an IPv6 address without a port are read as a glob, so this matches no image: name the port)`,
		},
		{"the path is decoded", "registry.io/te%61m", "registry.io/team/app", true, true, ""},
		{"a user name is ignored", "user@registry.io", "registry.io/app", true, true, ""},
		{
			"empty matches only empty", "", "registry.io/app", false, false,
			"pattern has 1 host label, image has 2 (the pattern has no host, so this matches no image: write host[:port][/path])",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Match(tt.pattern, tt.image); got != tt.match {
				t.Errorf("Match = %v, want %v", got, tt.match)
			}
			if got := MatchHost(tt.pattern, tt.image); got != tt.host {
				t.Errorf("MatchHost = %v, want %v", got, tt.host)
			}
			if got := Explain(tt.pattern, tt.image); got != tt.why {
				t.Errorf("Explain =\n\t%s, want\n\t%s", got, tt.why)
			}
		})
	}
}

func TestWarningNamesPatternsThatMatchNoImage(t *testing.T) {
	tests := []struct{ pattern, want string }{
		{"registry.io", ""},
		{"registry.io/", ""},
		{"registry.io/team/", ""},
		{"*.dkr.ecr.*.amazonaws.com", ""},
		{"*:5000", ""},
		{"localhost/app", ""},
		{"registry:5000", ""},
		{"registry.io/a_b-c.d/e", ""},
		{"oci://registry.io/x", `a pattern has no scheme, so this matches no image: write "registry.io/x"`},
		{"ftp://registry.io", "a pattern has no scheme, so this matches no image: write host[:port][/path]"},
		{"registry.io/a?b", "all after ? or # is ignored: the kubelet reads a pattern as a URL"},
		{"me@registry.io", "all before @ is ignored: the kubelet reads a pattern as a URL"},
		{"/team", "the pattern has no host, so this matches no image: write host[:port][/path]"},
		{"registry..io", "the host has an empty label, so this matches no image"},
		{"index.docker.io/x", `images of Docker Hub are asked for as docker.io/…, so this matches no image: write "docker.io/x"`},
		{"*", "* stands for one label, so this matches only localhost: there is no pattern for all registries, list them"},
		{"library/nginx", `a host without dot or port is read as a path on Docker Hub, so this matches no image: write "docker.io/library/nginx" or name the port`},
		{"registry.io/app:1.0", "an image is asked for without its tag or digest, so this matches no image: leave it out"},
		{"registry.io/app@sha256:0", "an image is asked for without its tag or digest, so this matches no image: leave it out"},
		{"registry.io/a//b", "an image's path has no empty part, so this matches no image: write one slash"},
		{"registry.io/App", "an image's path is lower case, so this matches no image"},
		{"registry.io/a b", "an image's path has only letters, digits, and . _ - /, so this matches no image"},
	}
	for _, tt := range tests {
		t.Run(tt.pattern, func(t *testing.T) {
			p, err := ParsePattern(tt.pattern)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Warning(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestPatternHasHostPortAndPath(t *testing.T) {
	p, err := ParsePattern("*.registry.io:5000/team")
	if err != nil {
		t.Fatal(err)
	}
	if p.Host() != "*.registry.io" || p.Port() != "5000" || p.Path() != "/team" || len(p.Labels()) != 3 || p.String() != "*.registry.io:5000/team" {
		t.Errorf("got host %q port %q path %q labels %q text %q", p.Host(), p.Port(), p.Path(), p.Labels(), p)
	}
	if p, _ = ParsePattern("registry.io"); p.Port() != "" || p.Path() != "" {
		t.Errorf("got port %q path %q, want none", p.Port(), p.Path())
	}
}

func TestIndexKeyIsWhatTheKeyringFilesUnder(t *testing.T) {
	tests := []struct{ key, want string }{
		{"registry.io", "registry.io"},
		{"registry.io/", "registry.io"},
		{"https://registry.io", "registry.io"},
		{"http://registry.io/team", "registry.io/team"},
		{"https://index.docker.io/v1/", "index.docker.io"},
		{"registry.io/v2/", "registry.io"},
		{"registry.io/v2", "registry.io/v2"},
		{"registry.io/v1/team", "registry.io/team"},
		{"registry.io/v1/v2/team", "registry.io/v2/team"},
		{"registry.io/te%61m", "registry.io/team"},
		{"https://https://registry.io", "https://registry.io"},
		{"HTTPS://registry.io", "HTTPS://registry.io"},
		{"registry.io:5000/a?b#c", "registry.io:5000/a"},
		{"", ""},
	}
	for _, tt := range tests {
		got, err := IndexKey(tt.key)
		if err != nil || got != tt.want {
			t.Errorf("IndexKey(%q) = %q, %v; want %q", tt.key, got, err, tt.want)
		}
	}
	if got, err := IndexKey("registry.io:port"); err == nil ||
		err.Error() != `auth key "registry.io:port" is not of the form host[:port][/path]: invalid port ":port" after host` {
		t.Errorf("IndexKey of a bad port = %q, %v", got, err)
	}
}

func TestKeyMatchesLooksAtTheIndexedKey(t *testing.T) {
	for _, key := range []string{"registry.io", "https://registry.io/v1/", "*.io", "registry.io/v2/team"} {
		if !KeyMatches(key, "registry.io/team/app") {
			t.Errorf("%q does not match", key)
		}
	}
	for _, key := range []string{"registry.io/v2", "index.docker.io", "registry.io:port", "HTTPS://registry.io"} {
		if KeyMatches(key, "registry.io/team/app") {
			t.Errorf("%q matches", key)
		}
	}
	if KeyMatches(DockerHubKey, "docker.io/library/nginx") {
		t.Error("the last resort for Docker Hub counts as a match")
	}
}

func TestDockerHubIsWhatNamesNoOtherRegistry(t *testing.T) {
	for image, want := range map[string]bool{
		"docker.io/library/nginx": true, "index.docker.io/x": true, "nginx": true, "library/nginx": true, "localhost/x": true, "registry.io": true,
		"registry.io/x": false, "localhost:5000/x": false, "/x": false, "": false, "registry-1.docker.io/x": false,
	} {
		if got := IsDockerHub(image); got != want {
			t.Errorf("IsDockerHub(%q) = %v", image, got)
		}
	}
}

func TestRegistryIsAllBeforeTheFirstSlash(t *testing.T) {
	for image, want := range map[string]string{"registry.io:5000/a/b": "registry.io:5000", "nginx": "nginx", "/x": "", "": ""} {
		if got := Registry(image); got != want {
			t.Errorf("Registry(%q) = %q", image, got)
		}
	}
}

func TestCheckNameTakesWhatTheKubeletSends(t *testing.T) {
	for _, image := range []string{"docker.io/library/nginx", "registry.example:5000/team/app", "[::1]:5000/x", "localhost/x", "nginx", "10.0.0.1/a__b/c-d.e"} {
		if err := CheckName(image); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestCheckNameSaysWhatIsWrong(t *testing.T) {
	tests := []struct{ image, want string }{
		{"", "image is empty: the kubelet sends host[:port]/path"},
		{strings.Repeat("a", 4097), "image has 4097 bytes: at most 4096 are read"},
		{"a\xff", `image "a\xff" is not UTF-8`},
		{"a b", `image "a b" has a space or a character that cannot be printed: write host[:port]/path`},
		{"a\x00", `image "a\x00" has a space or a character that cannot be printed: write host[:port]/path`},
		{"a\u202e", `image "a\u202e" has a space or a character that cannot be printed: write host[:port]/path`},
		{"https://a.io/x", `image "https://a.io/x" has a scheme: write host[:port]/path`},
		{"a.io:x/y", `image "a.io:x/y" is not of the form host[:port]/path: invalid port ":x" after host`},
		{"/x", `image "/x" has no registry: write host[:port]/path`},
		{"good.io@evil.io/x", `image "good.io@evil.io/x" is not of the form host[:port]/path: leave out what comes with @, ?, # or %`},
		{"a.io?/x", `image "a.io?/x" is not of the form host[:port]/path: leave out what comes with @, ?, # or %`},
		{"a.io/%41", `image "a.io/%41" is not of the form host[:port]/path: leave out what comes with @, ?, # or %`},
	}
	for _, tt := range tests {
		if err := CheckName(tt.image); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

func TestOverlapIsWhetherOneImageCanMatchBoth(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"registry.io", "registry.io", true},
		{"registry.io", "registry.io/team", true},
		{"registry.io/team", "registry.io/teamfoo", true},
		{"registry.io/a", "registry.io/b", false},
		{"registry.io", "registry.io:5000", false},
		{"*.io", "registry.io", true},
		{"*.io", "*.registry.io", false},
		{"a*.io", "*b.io", true},
		{"a*.io", "b*.io", false},
		{"a*c.io", "ab.io", false},
		{"*a*.io", "*b*.io", true},
		{"foo*.io", "*oo.io", true},
		{"*foo.io", "*bar.io", false},
		{"ab*ba.io", "aba.io", false},
		{"*.eu.io", "us.*.io", true},
		{"*a.eu.io", "us*b.*.io", false},
	}
	for _, tt := range tests {
		a, _ := ParsePattern(tt.a)
		b, _ := ParsePattern(tt.b)
		if got := Overlap(a, b); got != tt.want {
			t.Errorf("Overlap(%q, %q) = %v", tt.a, tt.b, got)
		}
		if got := Overlap(b, a); got != tt.want {
			t.Errorf("Overlap(%q, %q) = %v", tt.b, tt.a, got)
		}
	}
}

// The kubelet's globs know more than hosts can hold in a URL of this Go version; the rest of the glob syntax is tested on labels.
func TestGlobsMeetKnowsTheWholeSyntax(t *testing.T) {
	tests := []struct {
		a, b string
		want bool
	}{
		{"[a-c]x", "[c-d]x", true},
		{"[a-c]", "[d-e]", false},
		{"[^a]", "a", false},
		{"[^a]", "[^b]", true},
		{"?", "", false},
		{"?", "*", true},
		{"*", "", true},
		{`\*`, "*", true},
		{`\*`, "a", false},
		{"[", "*", false},
		{`[\]a]`, "]", true},
		{"ä*", "?b", true},
	}
	for _, tt := range tests {
		if got := globsMeet(tt.a, tt.b); got != tt.want {
			t.Errorf("globsMeet(%q, %q) = %v", tt.a, tt.b, got)
		}
		if got := globsMeet(tt.b, tt.a); got != tt.want {
			t.Errorf("globsMeet(%q, %q) = %v", tt.b, tt.a, got)
		}
	}
}

func TestKeyOfIsFiledUnderItsIndex(t *testing.T) {
	for _, index := range []string{"foo.io", "foo.io:5000", "foo.io/team", "foo.io/v1/team", "foo.io/v2/v1/team", "foo.io/v1", "*.foo.io/v2/"} {
		if got, err := IndexKey(KeyOf(index)); err != nil || got != index {
			t.Errorf("KeyOf(%q) = %q, which is filed under %q (error %v)", index, KeyOf(index), got, err)
		}
	}
}
