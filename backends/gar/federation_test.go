package gar

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/test/cloud"
)

const (
	issuer    = "https://issuer.example"
	nodeGroup = "node-1"
)

var (
	pool    = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "pool", Provider: "provider", Issuer: issuer}
	awsPool = cloud.WorkloadProvider{ProjectNumber: "123456789012", Pool: "aws", Provider: "provider", AWSAccount: "111111111111"}
	cluster = cloud.GKECluster{Project: project, ProjectNumber: "210987654321", Location: "europe-west1", Name: "cluster-1"}
)

func resource(p cloud.WorkloadProvider) string {
	return strings.TrimPrefix(p.Audience(), "//iam.googleapis.com/")
}

// tokenFor is a token of a service account, as the API server makes them.
func tokenFor(i *cloud.Issuer, namespace, name, audience string) backends.Secret {
	return backends.Secret(i.Token(map[string]any{
		"aud": []string{audience}, "sub": "system:serviceaccount:" + namespace + ":" + name,
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name, "uid": "6c3f1a4e"}},
	}))
}

func principalOf(t *testing.T, c *cloud.Cloud, got backends.Credential) string {
	t.Helper()
	principal, _, _, ok := c.AccessTokenOf(string(got.Password))
	if !ok {
		t.Error("it is no access token of Google's")
	}
	return principal
}

// external is a node with an external_account file.
func external(t *testing.T, source map[string]any) Config {
	t.Helper()
	return Config{CredentialsFile: write(t, "external.json", object(t, map[string]any{
		"type": "external_account", "audience": pool.Audience(), "subject_token_type": typeJWT, "token_url": "https://sts.googleapis.com/v1/token", "credential_source": source,
	}))}
}

func TestTokensOfOtherIssuers(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *cloud.Cloud, token string) Config
		want    string
	}{
		"a file": {func(t *testing.T, _ *cloud.Cloud, token string) Config {
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(token))}}, WorkloadIdentityProvider: resource(pool)}
		}, pool.Principal(nodeGroup)},
		"a file, and a service account": {func(t *testing.T, c *cloud.Cloud, token string) Config {
			c.AllowImpersonation(pool.PrincipalSet(), puller)
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(token))}}, WorkloadIdentityProvider: resource(pool), Impersonate: puller}
		}, puller},
		"AWS": {func(t *testing.T, c *cloud.Cloud, _ string) Config {
			setenv(t, c.AddUser("arn:aws:iam::111111111111:user/node").Environ()...)
			t.Setenv("AWS_REGION", "eu-west-1")
			return Config{AWS: true, WorkloadIdentityProvider: resource(awsPool)}
		}, ""},
		"an external account's file": {func(t *testing.T, _ *cloud.Cloud, token string) Config {
			return external(t, map[string]any{"file": write(t, "token", []byte(token))})
		}, pool.Principal(nodeGroup)},
		"an external account's URL, as a service account": {func(t *testing.T, c *cloud.Cloud, token string) Config {
			c.AllowImpersonation(pool.PrincipalSet(), puller)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Who") == "node" {
					_, _ = w.Write([]byte(`{"access_token": "` + token + `"}`))
				}
			}))
			t.Cleanup(server.Close)
			return Config{CredentialsFile: write(t, "external.json", object(t, map[string]any{
				"type": "external_account", "audience": pool.Audience(), "subject_token_type": typeJWT, "token_url": "https://sts.googleapis.com/v1/token",
				"service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + puller + ":generateAccessToken",
				"credential_source":                 map[string]any{"url": server.URL, "headers": map[string]any{"X-Who": "node"}, "format": map[string]any{"type": "json", "subject_token_field_name": "access_token"}},
			}))}
		}, puller},
		"an external account's program": {func(t *testing.T, _ *cloud.Cloud, token string) Config {
			if runtime.GOOS == "windows" {
				t.Skip("a shell script")
			}
			script := write(t, "program", []byte("#!/bin/sh\n[ \"$1 $GOOGLE_EXTERNAL_ACCOUNT_AUDIENCE\" = 'one "+pool.Audience()+"' ] || exit 1\n"+
				`echo '{"version": 1, "success": true, "token_type": "`+typeJWT+`", "id_token": "`+token+`"}'`+"\n"))
			if err := os.Chmod(script, 0o700); err != nil {
				t.Fatal(err)
			}
			return external(t, map[string]any{"executable": map[string]any{"command": script + " one"}})
		}, pool.Principal(nodeGroup)},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			c.AddWorkloadPool(pool)
			c.AddWorkloadPool(awsPool)
			token := c.AddIssuer(issuer).Token(map[string]any{"aud": "https:" + pool.Audience(), "sub": nodeGroup})
			cfg := test.prepare(t, c, token)
			for _, reader := range []string{pool.PrincipalSet(), awsPool.PrincipalSet(), puller} {
				c.GrantReader(project, reader)
			}
			got := principalOf(t, c, pull(t, c, backendFor(t, c, cfg), backends.Request{Image: image}))
			if test.want == "" && !strings.HasPrefix(got, strings.TrimSuffix(awsPool.Principal("x"), "x")) || test.want != "" && got != test.want {
				t.Errorf("a token of %q, want %q", got, test.want)
			}
		})
	}
}

func TestPodsPullForThemselves(t *testing.T) {
	annotated := map[string]string{pullAnnotation: "true"}
	for name, test := range map[string]struct {
		cfg         Config
		annotations map[string]string
		issuer      string // whose token the pod has: "gke", "pool" or none
		want        string // who pulls
		refused     string
	}{
		"GKE":                             {Config{}, annotated, "gke", cluster.Principal("team-a", "builder"), ""},
		"GKE, required":                   {Config{PodIdentity: settings.PodIdentityRequire}, nil, "gke", cluster.Principal("team-a", "builder"), ""},
		"GKE, as a service account":       {Config{}, map[string]string{pullAnnotation: "true", accountAnnotation: puller}, "gke", puller, ""},
		"GKE, without the annotation":     {Config{}, map[string]string{accountAnnotation: puller}, "gke", node, ""},
		"GKE, annotated otherwise":        {Config{}, map[string]string{pullAnnotation: "yes"}, "gke", node, ""},
		"a pool":                          {Config{PodWorkloadIdentityProvider: resource(pool)}, nil, "pool", pool.Principal("system:serviceaccount:team-a:builder"), ""},
		"a pool, as a service account":    {Config{PodWorkloadIdentityProvider: resource(pool)}, map[string]string{accountAnnotation: puller}, "pool", puller, ""},
		"a pool, as one it may not":       {Config{PodWorkloadIdentityProvider: resource(pool)}, map[string]string{accountAnnotation: between}, "pool", "", "roles/iam.workloadIdentityUser) on " + between},
		"off":                             {Config{PodIdentity: settings.PodIdentityOff}, annotated, "gke", node, ""},
		"no token":                        {Config{}, annotated, "", node, ""},
		"no token, required":              {Config{PodIdentity: settings.PodIdentityRequire}, annotated, "", "", "carries no service account token"},
		"of another cluster":              {Config{PodIdentity: settings.PodIdentityRequire}, annotated, "pool", "", "which is no GKE cluster"},
		"a pool that does not take it":    {Config{PodWorkloadIdentityProvider: resource(pool)}, annotated, "gke", "", "the pool's provider does not take it"},
		"a pool that is not there":        {Config{PodWorkloadIdentityProvider: resource(awsPool)}, annotated, "pool", "", "there is no such pool or provider"},
		"with an annotation that is none": {Config{}, map[string]string{pullAnnotation: "true", accountAnnotation: "x/../y"}, "gke", "", "no address of a service account"},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			c.AddWorkloadPool(pool)
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			tokens := map[string]backends.Secret{
				"gke":  tokenFor(c.AddGKECluster(cluster), "team-a", "builder", cluster.Pool()),
				"pool": tokenFor(c.AddIssuer(issuer), "team-a", "builder", "https:"+pool.Audience()),
			}
			c.AllowImpersonation(cluster.Principal("team-a", "builder"), puller)
			c.AllowImpersonation(pool.PrincipalSet(), puller)
			for _, reader := range []string{pool.PrincipalSet(), cluster.Principal("team-a", "builder"), puller, node} {
				c.GrantReader(project, reader)
			}
			b := backendFor(t, c, test.cfg)
			req := backends.Request{Image: image, Token: tokens[test.issuer], Annotations: test.annotations}
			if test.refused == "" {
				if got := principalOf(t, c, pull(t, c, b, req)); got != test.want {
					t.Errorf("a token of %q, want %q", got, test.want)
				}
				return
			}
			_, err := b.Credentials(t.Context(), req)
			if err == nil || !strings.Contains(err.Error(), test.refused) {
				t.Errorf("%v; want %s", err, test.refused)
			}
			if err != nil && req.Token != "" && strings.Contains(err.Error(), string(req.Token)) {
				t.Errorf("it tells the token: %v", err)
			}
		})
	}
}

// TestPodsAreKeptApart: what was got for one pod is never answered to another, nor to the node.
func TestPodsAreKeptApart(t *testing.T) {
	c := setUp(t)
	setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
	of := c.AddGKECluster(cluster)
	b := backendFor(t, c, Config{})
	seen := map[string]string{}
	c.GrantReader(project, node)
	for range 2 {
		for _, name := range []string{"", "a", "b"} {
			req, want := backends.Request{Image: image, Annotations: map[string]string{pullAnnotation: "true"}}, node
			if name != "" {
				want = cluster.Principal("team", name)
				c.GrantReader(project, want)
				req.Token = tokenFor(of, "team", name, cluster.Pool())
			}
			got := pull(t, c, b, req)
			if principal := principalOf(t, c, got); principal != want {
				t.Errorf("%q got a token of %s", name, principal)
			}
			if before, ok := seen[string(got.Password)]; ok && before != name {
				t.Errorf("%q and %q have one token", before, name)
			}
			seen[string(got.Password)] = name
		}
	}
}

// TestManyPodsAtOnce: each gets its own token, whoever asks meanwhile.
func TestManyPodsAtOnce(t *testing.T) {
	c := setUp(t)
	of := c.AddGKECluster(cluster)
	b := backendFor(t, c, Config{PodIdentity: settings.PodIdentityRequire})
	var all sync.WaitGroup
	for i := range 40 {
		name := "pod-" + strconv.Itoa(i%8)
		all.Go(func() {
			got, err := b.Credentials(t.Context(), backends.Request{Image: image, Token: tokenFor(of, "team", name, cluster.Pool())})
			if err != nil {
				t.Error(err)
				return
			}
			if principal, want := principalOf(t, c, got.Credentials[0]), cluster.Principal("team", name); principal != want {
				t.Errorf("%s got a token of %s", want, principal)
			}
		})
	}
	all.Wait()
}

// TestNothingOutlivesAPodsToken: what was got for it is not answered for it once it has expired.
func TestNothingOutlivesAPodsToken(t *testing.T) {
	c := setUp(t)
	b := backendFor(t, c, Config{})
	now := time.Now()
	b.tokens.Now = func() time.Time { return now }
	c.GrantReader(project, cluster.Principal("team", "a"))
	of := c.AddGKECluster(cluster)
	long := backends.Request{Image: image, Annotations: map[string]string{pullAnnotation: "true"}, Token: tokenFor(of, "team", "a", cluster.Pool())}
	short := long
	short.Token = backends.Secret(of.Token(map[string]any{"aud": []string{cluster.Pool()}, "sub": "system:serviceaccount:team:a", "exp": now.Add(10 * time.Minute).Unix()}))
	exchanges := func() (n int) {
		for _, r := range c.Requests() {
			if r.Service == "google-sts" {
				n++
			}
		}
		return n
	}
	ask := func(req backends.Request) {
		t.Helper()
		if _, err := b.Credentials(t.Context(), req); err != nil {
			t.Error(err)
		}
	}
	// What is got for a token lives as long as it, and is kept for half of that.
	ask(long)
	ask(short)
	now = now.Add(4 * time.Minute)
	ask(long)
	ask(short)
	if n := exchanges(); n != 2 {
		t.Fatalf("%d exchanges within half of the tokens' lives, want one for each", n)
	}
	now = now.Add(2 * time.Minute)
	ask(long)
	ask(short)
	if n := exchanges(); n != 3 {
		t.Errorf("%d exchanges, want another for the token that ends soon", n)
	}
}

func TestProgramsOfExternalAccounts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("shell scripts")
	}
	good := `{"version": 1, "success": true, "token_type": "` + typeJWT + `", "id_token": "secret-token"`
	for name, test := range map[string]struct {
		script string // what it does; empty: there is none
		mode   os.FileMode
		want   string
	}{
		"none":                          {"", 0, "no such file"},
		"one that others may write":     {"exit 0", 0o722, "can be written by"},
		"one that fails":                {"echo secret-token; echo secret-token >&2; exit 3", 0o700, "exit status 3"},
		"no JSON":                       {"echo secret-token", 0o700, "no JSON of version 1"},
		"another version":               {`echo '{"version": 2, "success": true}'`, 0o700, "no JSON of version 1"},
		"no success":                    {`echo '{"version": 1, "success": false, "code": "401", "message": "secret-token"}'`, 0o700, `code "401"`},
		"another type":                  {"echo '" + strings.Replace(good, ":jwt", ":id_token", 1) + "}'", 0o700, "it printed a token of type"},
		"an old token":                  {"echo '" + good + `, "expiration_time": 1}'`, 0o700, "expired at 1970-01-01"},
		"no token":                      {`echo '{"version": 1, "success": true, "token_type": "` + typeJWT + `"}'`, 0o700, "printed no token"},
		"one that Google does not take": {"echo '" + good + "}'", 0o700, "sts.googleapis.com: invalid_request (HTTP status 400)"},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			c.AddWorkloadPool(pool)
			c.AddIssuer(issuer)
			path := filepath.Join(t.TempDir(), "program")
			if test.script != "" {
				if err := os.WriteFile(path, []byte("#!/bin/sh\n"+test.script+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(path, test.mode); err != nil {
					t.Fatal(err)
				}
			}
			b := backendFor(t, c, Config{CredentialsFile: write(t, "external.json", object(t, map[string]any{
				"type": "external_account", "audience": pool.Audience(), "subject_token_type": typeJWT, "token_url": "https://sts.googleapis.com/v1/token",
				"credential_source": map[string]any{"executable": map[string]any{"command": path}},
			}))})
			_, err := b.Credentials(t.Context(), backends.Request{Image: image})
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret-token") {
				t.Errorf("%v; want %s, and no token", err, test.want)
			}
			if _, ok := errors.AsType[*subjectError](err); ok {
				t.Errorf("%T", err)
			}
		})
	}
}
