package acr

import (
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
)

func TestHostsOfAzure(t *testing.T) {
	for image, want := range map[string]registry{
		"contoso.azurecr.io/app":                      {host: "contoso.azurecr.io", name: "contoso.azurecr.io", cloud: &publicCloud, repository: "app"},
		"contoso-ab12cd34ef56gh78.azurecr.io/a/b/c":   {host: "contoso-ab12cd34ef56gh78.azurecr.io", name: "contoso-ab12cd34ef56gh78.azurecr.io", cloud: &publicCloud, repository: "a/b/c"},
		"contoso.azurecr.io:443/app":                  {host: "contoso.azurecr.io:443", name: "contoso.azurecr.io", cloud: &publicCloud, repository: "app"},
		"Contoso.azurecr.io/app":                      {host: "Contoso.azurecr.io", name: "contoso.azurecr.io", cloud: &publicCloud, repository: "app"},
		"contoso.azurecr.cn/app":                      {host: "contoso.azurecr.cn", name: "contoso.azurecr.cn", cloud: &chinaCloud, repository: "app"},
		"contoso.azurecr.us/app":                      {host: "contoso.azurecr.us", name: "contoso.azurecr.us", cloud: &governmentCloud, repository: "app"},
		"contoso.azurecr.de/app":                      {host: "contoso.azurecr.de", name: "contoso.azurecr.de", repository: "app"},
		"contoso.eastus.geo.azurecr.io/app":           {host: "contoso.eastus.geo.azurecr.io", name: "contoso.eastus.geo.azurecr.io", cloud: &publicCloud, repository: "app"},
		"contoso.chinanorth3.geo.azurecr.cn/app":      {host: "contoso.chinanorth3.geo.azurecr.cn", name: "contoso.chinanorth3.geo.azurecr.cn", cloud: &chinaCloud, repository: "app"},
		"contoso.azsacr.region.stack.example/app":     {host: "contoso.azsacr.region.stack.example", name: "contoso.azsacr.region.stack.example", repository: "app"},
		"contoso.azsacr.region.stack.example:443/app": {host: "contoso.azsacr.region.stack.example:443", name: "contoso.azsacr.region.stack.example", repository: "app"},
	} {
		got, ok := parseHost(backends.Image(image), []string{"*.azsacr.region.stack.example"})
		if !ok || got != want {
			t.Errorf("%s: known: %t; %+v, want %+v", image, ok, got, want)
		}
	}
}

func TestHostsOfOthers(t *testing.T) {
	for _, image := range []string{
		"registry.example/app", "azurecr.io/app", ".azurecr.io/app", "-.azurecr.example/app", "contoso.azurecr.io.example/app", "contoso.azurecr.com/app", "a.contoso.azurecr.io/app", "xazurecr.io/app",
		"contoso.eastus.data.azurecr.io/app", "contoso.eastus.azurecr.io/app", "a.contoso.eastus.geo.azurecr.io/app", "contoso.geo.azurecr.io/app", "con_toso.azurecr.io/app", "contoso.azurecr.io:5000/app",
		"contoso.azurecr.io:80/app", "mcr.microsoft.com/app", "contoso.azurecr.io./app", "contoso..azurecr.io/app", "a.b.azsacr.region.stack.example/app", "contoso.azurecr.\u0130o/app", "\u212aontoso.azurecr.io/app",
		"user@contoso.azurecr.io/app", "contoso.azurecr.io\\@evil.example/app", "$(x).azurecr.io/app", "[::1]:443/app", "192.168.0.100:8000/app", "/app", "",
	} {
		if got, ok := parseHost(backends.Image(image), []string{"*.azsacr.region.stack.example"}); ok {
			t.Errorf("%s is taken for %+v", image, got)
		}
	}
}

func TestRealms(t *testing.T) {
	for realm, want := range map[string]bool{
		"https://contoso.azurecr.io/oauth2/token": true, "https://contoso.azurecr.io:443/oauth2/token": true, "https://CONTOSO.azurecr.io/oauth2/token": true,
		"": false, "http://contoso.azurecr.io/oauth2/token": false, "https://contoso.azurecr.io:8443/oauth2/token": false, "https://evil.example/oauth2/token": false, "https://contoso.azurecr.io.evil.example/": false,
		"https://contoso.azurecr.io@evil.example/": false, "https://user@contoso.azurecr.io/": false, "//contoso.azurecr.io/oauth2/token": false, "https:contoso.azurecr.io": false, "https://contoso.azurecr.io./": false, "%": false,
		"https://other.azurecr.io/oauth2/token": false, "ftp://contoso.azurecr.io/": false,
	} {
		if ownRealm(realm, "contoso.azurecr.io") != want {
			t.Errorf("%q: want %t", realm, want)
		}
	}
}

func TestParametersOfChallenges(t *testing.T) {
	for challenge, want := range map[string][2]string{
		`realm="https://a/oauth2/token",service="a"`:           {"https://a/oauth2/token", "a"},
		`service="a", realm="https://a/oauth2/token"`:          {"https://a/oauth2/token", "a"},
		`Realm = "x" , SERVICE=y`:                              {"x", "y"},
		`realm="a,service=\"b\"",service="c"`:                  {`a,service="b"`, "c"},
		`scope="repository:x:pull,push",realm="x",service="y"`: {"x", "y"},
		`realm="x",realm="evil",service="y"`:                   {"x", "y"},
		`realm="x`:                                             {"", ""},
		`realm`:                                                {"", ""},
		``:                                                     {"", ""},
		`error="invalid_token",service="y"`:                    {"", "y"},
		`realm="x"service="y"`:                                 {"x", "y"},
		`xrealm="evil",realm="x"`:                              {"x", ""},
		`=,realm="x"`:                                          {"x", ""},
	} {
		if got := [2]string{parameter(challenge, "realm"), parameter(challenge, "service")}; got != want {
			t.Errorf("%s: %q, want %q", challenge, got, want)
		}
	}
}

// FuzzChallenges: whatever a registry says, what is made of it ends, and a realm that is taken is the registry's own.
func FuzzChallenges(f *testing.F) {
	f.Add(`realm="https://contoso.azurecr.io/oauth2/token",service="contoso.azurecr.io"`)
	f.Add(`realm="https://contoso.azurecr.io\@evil.example/",service=`)
	f.Fuzz(func(t *testing.T, challenge string) {
		realm := parameter(challenge, "realm")
		if !ownRealm(realm, host) {
			return
		}
		// Compared by its letters, and not as ownRealm does.
		rest, ok := strings.CutPrefix(strings.ToLower(realm), "https://"+host)
		if rest, _ = strings.CutPrefix(rest, ":443"); !ok || rest != "" && !strings.ContainsAny(rest[:1], "/?#:") || strings.HasPrefix(rest, ":") && rest != ":" && !strings.ContainsAny(rest[1:2], "/?#") {
			t.Errorf("%q is taken", realm)
		}
	})
}
