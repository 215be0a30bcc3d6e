package docker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/image"
	"github.com/credential-broker/credential-broker/broker/kubelet"
	"github.com/credential-broker/credential-broker/proto/secret"
)

func TestAServerStandsForAnImage(t *testing.T) {
	tests := []struct{ server, image string }{
		{"registry.example", "registry.example"},
		{"registry.example:5000", "registry.example:5000"},
		{"registry.example:5000\n", "registry.example:5000"},
		{"  registry.example\t", "registry.example"},
		{"Registry.EXAMPLE", "registry.example"},
		{"registry.example/", "registry.example"},
		{"https://registry.example", "registry.example"},
		{"HTTPS://registry.example/", "registry.example"},
		{"http://registry.example:80/v2/", "registry.example:80"},
		{"https://registry.example/v1", "registry.example"},
		{"https://registry.example/v2/team/app", "registry.example/team/app"},
		{"https://registry.example/v2team", "registry.example/v2team"},
		{"registry.example/v2/team", "registry.example/v2/team"}, // no URL: a repository may be named so
		{"registry.example/team/app", "registry.example/team/app"},
		{"registry.example/team/app/", "registry.example/team/app"},
		{"https://index.docker.io/v1/", "docker.io"},
		{"https://index.docker.io/v1", "docker.io"},
		{"index.docker.io", "docker.io"},
		{"docker.io", "docker.io"},
		{"registry-1.docker.io", "docker.io"},
		{"index.docker.io/library/nginx", "docker.io/library/nginx"},
		{"docker.io.evil.example", "docker.io.evil.example"},
		{"[::1]:5000", "[::1]:5000"},
		{"http://[::1]:5000/v2/", "[::1]:5000"},
		{"localhost", "localhost"},
		{"re\u212Aistry.example", "re\u212Aistry.example"}, // whose lower case is a k
		{"localhost:5000", "localhost:5000"},
	}
	for _, tt := range tests {
		server, img, err := ReadServer([]byte(tt.server))
		if err != nil || img != tt.image {
			t.Errorf("%q stands for %q (%v), want %q", tt.server, img, err, tt.image)
		}
		if server != strings.TrimSpace(tt.server) {
			t.Errorf("%q is answered as %q", tt.server, server)
		}
	}
}

func TestWhatIsNoServerIsRefusedWithoutAQuotationOfPasswords(t *testing.T) {
	const canary = "cAnArY"
	tests := []struct{ name, input, says string }{
		{"nothing", "", "no credentials server URL"},
		{"white space", " \r\n\t\n", "no credentials server URL"},
		{"two lines", "registry.example\nother.example", "more than one line"},
		{"two lines of one name", "registry.\nexample", "more than one line"},
		{"a user name", "https://user:" + canary + "@registry.example", "password"},
		{"a user name without a scheme", canary + "@registry.example", "password"},
		{"a query", "https://registry.example/?token=" + canary, "password"},
		{"an escaped slash", "registry.example%2fteam", "@ ? # %"},
		{"another scheme", "unix:///run/socket", "neither host[:port] nor a URL"},
		{"no host", "https:///v2/", "no host"},
		{"a slash alone", "/", "no host"},
		{"a mebibyte", strings.Repeat(canary, 1<<18), "longer than 4096 bytes"},
		{"JSON", `{"ServerURL": "registry.example"}`, "server"},
		{"a space", "registry.example other.example", "space"},
		{"a zero byte", "registry.example\x00", "cannot be printed"},
		{"no UTF-8", "registry.example\xff", "UTF-8"},
		{"a way out", "registry.example/team/../other", "leads elsewhere"},
		{"half an IPv6 address", "[::1", "not of the form"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, img, err := ReadServer([]byte(tt.input))
			if err == nil {
				t.Fatalf("it stands for %q", img)
			}
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "\n") {
				t.Errorf("the error is %q, want it to say %q", err, tt.says)
			}
		})
	}
}

// Whatever a client writes, what is asked for is a name as the kubelet's are, and nobody gets at another registry than the one named.
func FuzzReadServer(f *testing.F) {
	for _, seed := range []string{"registry.example:5000/team", "https://index.docker.io/v1/", "http://[::1]:5000/v2/x", "a@b", "..", "x/../y", "HTTPS://A/v1/v2/b"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, img, err := ReadServer(data)
		if err != nil {
			return
		}
		if err := image.CheckName(img); err != nil {
			t.Errorf("%q stands for %q: %v", data, img, err)
		}
		if again, err := ImageOf(img); err != nil || again != img {
			t.Errorf("%q stands for %q, and that for %q (%v)", data, img, again, err)
		}
		if host := image.Registry(img); host != hub && !strings.Contains(strings.ToLower(string(data)), host) {
			t.Errorf("%q stands for %q, of another registry", data, img)
		}
	})
}

func TestPick(t *testing.T) {
	tests := []struct {
		name, image string
		auth        map[string]string // user names by key
		want        string
	}{
		{"the host's", "registry.example", map[string]string{"registry.example": "a"}, "a"},
		{"a port counts", "registry.example:5000", map[string]string{"registry.example": "a"}, ""},
		{"a part's is not the whole registry's", "registry.example", map[string]string{"registry.example/team": "a"}, ""},
		{"the whole registry's beside a part's", "registry.example", map[string]string{"registry.example/team": "a", "registry.example": "b"}, "b"},
		{"another part's", "registry.example/other", map[string]string{"registry.example/team": "a"}, ""},
		{"a part's for an image of it", "registry.example/team/app", map[string]string{"registry.example/team": "a", "registry.example": "b"}, "a"},
		{"an image's is not its parent's", "registry.example/team", map[string]string{"registry.example/team/app": "a"}, ""},
		{"a glob", "eu.registry.example", map[string]string{"*.registry.example": "a"}, "a"},
		{"the host before a glob, as the kubelet", "eu.registry.example", map[string]string{"*.registry.example": "a", "eu.registry.example": "b"}, "b"},
		{"a URL", "registry.example", map[string]string{"https://registry.example/v2/": "a"}, "a"},
		{"Docker Hub's", "docker.io", map[string]string{"docker.io": "a", "index.docker.io": "b"}, "a"},
		{"Docker Hub's last resort", "docker.io", map[string]string{"https://index.docker.io/v1/": "b"}, "b"},
		{"Docker Hub's last resort is nobody else's", "registry.example", map[string]string{"index.docker.io": "b"}, ""},
		{"nor that of a host without dots", "localhost", map[string]string{"index.docker.io": "b"}, ""},
		{"a ladder's first", "registry.example", map[string]string{"registry.example": "first", "registry*.example": "second"}, "first"},
		{"nothing", "registry.example", nil, ""},
		{"a key that is none", "registry.example", map[string]string{"%": "a"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			response := kubelet.Response{Auth: map[string]kubelet.AuthConfig{}}
			for key, user := range tt.auth {
				response.Auth[key] = kubelet.AuthConfig{Username: user, Password: secret.Secret("of " + user)}
			}
			got, ok := Pick(tt.image, response)
			if got.Username != tt.want || ok != (tt.want != "") || ok && string(got.Password) != "of "+tt.want {
				t.Errorf("got %q (%t), want %q", got.Username, ok, tt.want)
			}
		})
	}
	if _, ok := Pick("registry.example", kubelet.Response{Auth: map[string]kubelet.AuthConfig{"registry.example": {}}}); ok {
		t.Error("a credential of nothing was picked")
	}
}

func TestWhyNone(t *testing.T) {
	providers := []*config.Provider{
		{Name: "whole", MatchImages: []string{"whole.example"}},
		{Name: "team", MatchImages: []string{"registry.example/team", "registry.example/other", "else.example"}},
		{Name: "pods", MatchImages: []string{"registry.example"}, TokenAttributes: &config.TokenAttributes{ServiceAccountTokenAudience: "a"}},
		{Name: "mirror", MatchImages: []string{"none.example"}, Mirrors: []config.Mirror{{Source: "docker.io/library", Endpoint: "mirror.example/hub"}}},
	}
	for img, want := range map[string][]string{
		"whole.example": nil,
		"registry.example": {
			`provider "team" is for registry.example/team, registry.example/other alone`, `provider "pods" answers for pods alone (tokenAttributes)`,
		},
		"docker.io":          {`provider "mirror" is for docker.io/library alone`},
		"docker.io/library/": nil,
		"nowhere.example":    nil,
	} {
		if diff := cmp.Diff(want, WhyNone(providers, img)); diff != "" {
			t.Errorf("%s: %s", img, diff)
		}
	}
}

func TestDockersOwnTokensAreNoServer(t *testing.T) {
	for server, want := range map[string]bool{"https://index.docker.io/v1/access-token": true, "https://index.docker.io/v1/refresh-token": true, "https://index.docker.io/v1/": false, "registry.example/access-token": false} {
		img, err := ImageOf(server)
		if err != nil || IsHubToken(img) != want {
			t.Errorf("%s: %t (%v), want %t", server, !want, err, want)
		}
	}
}
