package gar

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// Another universe, with a registry in it.
const (
	elsewhere      = "s3nsapis.fr"
	elsewhereHost  = "u-france-east1-docker.s3nsregistry.fr"
	elsewhereImage = elsewhereHost + "/" + project + "/repo/app"
)

// TestWhatTheMetadataServerSaysOfItsUniverse is heeded, and a server that knows of none is Google's own.
func TestWhatTheMetadataServerSaysOfItsUniverse(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		cfg    Config
		image  string
		kind   backends.Kind
		want   string // of the error
	}{
		"its own":                                      {200, "googleapis.com", Config{}, image, 0, ""},
		"its own, with a line's end":                   {200, "googleapis.com\n", Config{}, image, 0, ""},
		"its own, as the settings say":                 {200, "googleapis.com", Config{UniverseDomain: defaultUniverse}, image, 0, ""},
		"nothing":                                      {200, "", Config{}, image, 0, ""},
		"a server of old":                              {404, planted, Config{}, image, 0, ""},
		"another":                                      {200, elsewhere, Config{}, image, misconfigured, "the credentials are of universe s3nsapis.fr, and the registries' tokens of googleapis.com"},
		"another, as the settings say":                 {200, elsewhere, Config{Hosts: []string{elsewhereHost}, UniverseDomain: elsewhere}, elsewhereImage, 0, ""},
		"its own, against the settings":                {200, "googleapis.com", Config{Hosts: []string{elsewhereHost}, UniverseDomain: elsewhere}, elsewhereImage, misconfigured, "the credentials are of universe googleapis.com, and the registries' tokens of s3nsapis.fr"},
		"nothing, against the settings":                {404, "", Config{Hosts: []string{elsewhereHost}, UniverseDomain: elsewhere}, elsewhereImage, misconfigured, "the credentials are of universe googleapis.com"},
		"no domain":                                    {200, "<html>" + planted, Config{}, image, unavailable, "the answer is no domain"},
		"a server that does not want to":               {403, planted, Config{}, image, refused, "status 403"},
		"a server that is broken":                      {500, planted, Config{}, image, unavailable, "status 500"},
		"this one's registry by a provider of another": {200, elsewhere, Config{Hosts: []string{elsewhereHost}, UniverseDomain: elsewhere}, image, misconfigured, host + " takes tokens of googleapis.com, and this provider's are of s3nsapis.fr"},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			metadataInstead(t, c, "/universe/universe-domain", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Metadata-Flavor", "Google")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			})
			got, err := backendFor(t, c, test.cfg).Credentials(t.Context(), backends.Request{Image: backends.Image(test.image)})
			if test.want == "" {
				if err != nil || len(got.Credentials) != 1 {
					t.Errorf("%d credentials, %v", len(got.Credentials), err)
				}
				return
			}
			marked, ok := errors.AsType[*backends.Error](err)
			if !ok || marked.Kind != test.kind || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), planted) {
				t.Errorf("%#v; want %s", err, test.want)
			}
		})
	}
}

// TestAnotherUniverseIsAskedForItsOwnTokens, and nobody of this one sees what proves who the node is.
func TestAnotherUniverseIsAskedForItsOwnTokens(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *cloud.Cloud, f certificateFiles) Config
		want    string // who is asked; empty: nobody has to be
	}{
		"a key, which signs tokens itself": {func(t *testing.T, c *cloud.Cloud, _ certificateFiles) Config {
			return Config{CredentialsFile: write(t, "key.json", keyOf(t, c, elsewhere))}
		}, ""},
		"a key, which impersonates": {func(t *testing.T, c *cloud.Cloud, _ certificateFiles) Config {
			return Config{CredentialsFile: write(t, "key.json", keyOf(t, c, elsewhere)), Impersonate: puller}
		}, "iamcredentials." + elsewhere},
		"another issuer's token": {func(t *testing.T, c *cloud.Cloud, _ certificateFiles) Config {
			token := c.AddIssuer(issuer).Token(map[string]any{"aud": "https:" + pool.Audience(), "sub": nodeGroup})
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(token))}}, WorkloadIdentityProvider: resource(pool)}
		}, "sts." + elsewhere},
		"a client certificate": {func(_ *testing.T, c *cloud.Cloud, f certificateFiles) Config {
			f.issue(c.ClientCA("root"), nil)
			return f.external(map[string]any{"certificate_config_location": f.write("config.json", f.config())}, map[string]any{"token_url": "", "universe_domain": elsewhere})
		}, "sts.mtls." + elsewhere},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			cfg := test.prepare(t, c, certificateFiles{t, t.TempDir()})
			cfg.Hosts, cfg.UniverseDomain = []string{elsewhereHost}, elsewhere
			got, err := backendFor(t, c, cfg).Credentials(t.Context(), backends.Request{Image: elsewhereImage})
			if (err == nil) != (test.want == "") || err == nil && (len(got.Credentials) != 1 || got.Credentials[0].Key != elsewhereHost) {
				t.Errorf("%+v, %v", got, err)
			}
			var asked []string
			for _, r := range c.Requests() {
				asked = append(asked, r.Host)
			}
			if slices.Sort(asked); test.want != "" && (len(slices.Compact(asked)) != 1 || asked[0] != test.want) || test.want == "" && len(asked) != 0 {
				t.Errorf("asked %q, want %q alone", asked, test.want)
			}
		})
	}
}

// TestAFilesUniverse: what a file says of it is held against the settings before any registry sees its token.
func TestAFilesUniverse(t *testing.T) {
	for name, test := range map[string]struct {
		said, set string
		want      string
	}{
		"none, as Google's own":            {"", "", ""},
		"Google's own":                     {defaultUniverse, defaultUniverse, ""},
		"another":                          {elsewhere, "", "the credentials are of universe s3nsapis.fr, and the registries' tokens of googleapis.com"},
		"none, against the settings":       {"", elsewhere, "the credentials are of universe googleapis.com, and the registries' tokens of s3nsapis.fr"},
		"a third one against the settings": {"apis.example", elsewhere, "the credentials are of universe apis.example, and the registries' tokens of s3nsapis.fr"},
		"no domain":                        {"https://" + elsewhere, "", `universe_domain is "https://s3nsapis.fr", which is no domain`},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			cfg, from := Config{CredentialsFile: write(t, "key.json", keyOf(t, c, test.said))}, image
			if cfg.UniverseDomain = test.set; test.set == elsewhere {
				cfg.Hosts, from = []string{elsewhereHost}, elsewhereImage
			}
			_, err := backendFor(t, c, cfg).Credentials(t.Context(), backends.Request{Image: backends.Image(from)})
			if test.want == "" && err != nil {
				t.Error(err)
			}
			if marked, ok := errors.AsType[*backends.Error](err); test.want != "" && (!ok || marked.Kind != misconfigured || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%#v; want %s", err, test.want)
			}
		})
	}
}

// keyOf is a key file that says of which universe it is; empty: it does not.
func keyOf(t *testing.T, c *cloud.Cloud, universe string) []byte {
	t.Helper()
	var file map[string]any
	if err := json.Unmarshal(c.ServiceAccountKeyFile(puller), &file); err != nil {
		t.Fatal(err)
	}
	if delete(file, "universe_domain"); universe != "" {
		file["universe_domain"] = universe
	}
	return object(t, file)
}
