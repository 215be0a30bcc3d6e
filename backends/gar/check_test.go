package gar

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credential-broker/credential-broker/backends"
	"github.com/credential-broker/credential-broker/backends/internal/settings"
	"github.com/credential-broker/credential-broker/backends/webidentity"
	"github.com/credential-broker/credential-broker/proto/trust"
	"github.com/credential-broker/credential-broker/test/cloud"
)

// checker is the real gar-check. It is built before any test changes the environment.
var checker string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gar")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	checker = filepath.Join(dir, checkProgram.Name)
	if isWindows {
		checker += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", checker, "../../cmd/"+checkProgram.Name).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// checkable is a backend whose gar-check is the real one, in a process that finds the cloud by its environment alone.
func checkable(t *testing.T, c *cloud.Cloud, cfg Config) *Backend {
	t.Helper()
	b := backendFor(t, c, cfg)
	b.program = func() (string, error) { return checker, nil }
	return b
}

// logged has what is logged from now on.
func logged(t *testing.T) *bytes.Buffer {
	t.Helper()
	var log bytes.Buffer
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return &log
}

// checked runs a check, and looks whether anything of it tells a token.
func checked(t *testing.T, b *Backend, req backends.Request, log *bytes.Buffer) error {
	t.Helper()
	err := b.Check(t.Context(), req)
	for _, secret := range []string{"ya29.", planted} {
		if strings.Contains(fmt.Sprint(err), secret) || strings.Contains(log.String(), secret) {
			t.Errorf("it tells %q: %v\n%s", secret, err, log)
		}
	}
	return err
}

// TestCheck goes the whole way: the backend, the program, the API.
func TestCheck(t *testing.T) {
	key := func(t *testing.T, c *cloud.Cloud) Config {
		t.Helper()
		return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}
	}
	reader := func(t *testing.T, c *cloud.Cloud) Config {
		t.Helper()
		c.GrantReader(project, puller)
		return key(t, c)
	}
	container := func(t *testing.T, c *cloud.Cloud) Config {
		t.Helper()
		c.AddGoogleRegistry("eu.gcr.io", project)
		return reader(t, c)
	}
	machine := func(t *testing.T, c *cloud.Cloud, scopes ...string) Config {
		t.Helper()
		g := c.GoogleInstance(cloud.ServiceAccount{Email: node})
		g.SetScopes(scopes...)
		setenv(t, g.Environ()...)
		return Config{}
	}
	const (
		download    = "artifactregistry.repositories.downloadArtifacts"
		unavailable = "unavailable"
		refused     = "refused"
		binding     = "`gcloud artifacts repositories add-iam-policy-binding repo --project=my-project --location=europe-west1 --member=serviceAccount:" + puller + " --role=roles/artifactregistry.reader`"
	)
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *cloud.Cloud) Config
		image   backends.Image // without: the usual one
		kind    string         // of the error; without: all is well
		says    []string       // by the error
		logs    []string
	}{
		"all is well": {prepare: reader, logs: []string{"identity=serviceAccount:" + puller, "repository=repo project=my-project location=europe-west1 format=DOCKER mode=standard"}},
		"a remote repository": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.SetGoogleRepository(host, project, "repo", "DOCKER", "REMOTE_REPOSITORY")
			return reader(t, c)
		}, logs: []string{"mode=remote"}},
		"a virtual repository": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.SetGoogleRepository(host, project, "repo", "DOCKER", "VIRTUAL_REPOSITORY")
			return reader(t, c)
		}, logs: []string{"mode=virtual"}},
		"a region's own endpoint": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.AddGoogleRegistry("docker.europe-west1.rep.pkg.dev", project)
			return reader(t, c)
		}, image: "docker.europe-west1.rep.pkg.dev/my-project/repo/app", logs: []string{"location=europe-west1"}},
		"a domain's project": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.AddGoogleRegistry(host, "example.com:my-project", "repo")
			c.GrantReader("example.com:my-project", puller)
			return key(t, c)
		}, image: host + "/example.com/my-project/repo/app", logs: []string{"project=example.com:my-project"}},
		"an account that is impersonated": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantReader(project, puller)
			c.AllowImpersonation(node, puller)
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(node)), Impersonate: puller}
		}, logs: []string{"identity=serviceAccount:" + puller}},

		"no role": {prepare: key, kind: refused, says: []string{"serviceAccount:" + puller + " may not pull from the repository repo in location europe-west1 of project my-project, or there is none: " + binding}},
		"a role that lets look and not pull": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantCustomRole(project, puller, "artifactregistry.repositories.get")
			return key(t, c)
		}, kind: refused, says: []string{"may not pull from the repository repo in location europe-west1 of project my-project: " + binding}},
		"no role in a domain's project": {prepare: key, image: host + "/example.com/my-project/repo/app", kind: refused, says: []string{" --project=example.com:my-project "}},
		"a role that lets pull and nothing else": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantCustomRole(project, puller, download)
			return key(t, c)
		}, logs: []string{"level=WARN", "missing=\"artifactregistry.repositories.get"}},
		"no such repository": {prepare: reader, image: host + "/my-project/other/app", kind: refused, says: []string{
			"there is no repository other in location europe-west1 of project my-project: make it with `gcloud artifacts repositories create other --project=my-project --location=europe-west1 --repository-format=docker`",
			"`gcloud artifacts repositories list --project=my-project`",
		}},
		"another location": {prepare: reader, image: "europe-docker.pkg.dev/my-project/repo/app", kind: refused, says: []string{"there is no repository repo in location europe of"}},
		"another format": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.SetGoogleRepository(host, project, "repo", "PYTHON", "STANDARD_REPOSITORY")
			return reader(t, c)
		}, kind: refused, says: []string{"has format PYTHON"}},
		"no repository in the name": {prepare: reader, image: host + "/my-project/app", kind: refused, says: []string{"want " + host + "/PROJECT/REPOSITORY/IMAGE"}},
		"not Google's":              {prepare: reader, image: "registry.example/app", kind: refused, says: []string{`"registry.example" is no registry of Google's`}},

		"Container Registry": {prepare: container, image: "eu.gcr.io/my-project/app", logs: []string{"redirection=REDIRECTION_FROM_GCR_IO_ENABLED repository=eu.gcr.io location=europe"}},
		"Container Registry without redirection": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.SetRedirection(project, "REDIRECTION_FROM_GCR_IO_DISABLED")
			return container(t, c)
		}, image: "eu.gcr.io/my-project/app", kind: refused, says: []string{"Artifact Registry does not serve eu.gcr.io for project my-project (REDIRECTION_FROM_GCR_IO_DISABLED)", "gcloud artifacts settings enable-upgrade-redirection --project=my-project"}},
		"Container Registry without its repository": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			cfg := container(t, c)
			c.DeleteGoogleRepository("eu.gcr.io", project, "eu.gcr.io")
			return cfg
		}, image: "eu.gcr.io/my-project/app", kind: refused, says: []string{"there is no repository eu.gcr.io in location europe of project my-project"}},
		"Container Registry, and a role that lets pull and nothing else": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.AddGoogleRegistry("eu.gcr.io", project)
			c.GrantCustomRole(project, puller, download)
			return key(t, c)
		}, image: "eu.gcr.io/my-project/app", logs: []string{"missing=\"artifactregistry.projectsettings.get", "missing=\"artifactregistry.repositories.get"}},
		"a host that is in no project": {prepare: reader, image: "mirror.gcr.io/library/nginx", logs: []string{"more cannot be checked"}},

		"a machine": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantReader(project, node)
			return machine(t, c, scopeAll)
		}, logs: []string{"identity=serviceAccount:" + node}},
		"a machine that may only pull": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantReader(project, node)
			return machine(t, c, scopeStorage)
		}, logs: []string{"level=WARN", "the machine's OAuth scopes let it pull", "scopes=" + scopeStorage}},
		"a machine without a scope": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.GrantReader(project, node)
			return machine(t, c, "https://www.googleapis.com/auth/logging.write")
		}, kind: refused, says: []string{"ACCESS_TOKEN_SCOPE_INSUFFICIENT", "not a role is missing but an OAuth scope: the machine has https://www.googleapis.com/auth/logging.write; give it"}},
		"an API that is off": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.DisableArtifactRegistry(project)
			return reader(t, c)
		}, kind: refused, says: []string{"PERMISSION_DENIED SERVICE_DISABLED", "gcloud services enable artifactregistry.googleapis.com --project=my-project"}},
		"an API that is off where requests are counted": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.AddGoogleRegistry(host, "other-project", "repo")
			c.GrantReader("other-project", puller)
			c.DisableArtifactRegistry(project)
			return key(t, c)
		}, image: host + "/other-project/repo/app", kind: refused, says: []string{"is not enabled in project my-project: `gcloud services enable artifactregistry.googleapis.com --project=my-project`"}},
		"a token that is revoked": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			cfg := reader(t, c)
			c.Fail(cloud.Fault{Service: "google-artifacts", Status: 401, Code: "UNAUTHENTICATED"})
			return cfg
		}, kind: refused, says: []string{"UNAUTHENTICATED (HTTP status 401)", "its API does not take it"}},
		"throttled": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts"})
			return reader(t, c)
		}, kind: unavailable, says: []string{"artifactregistry.googleapis.com: RESOURCE_EXHAUSTED (HTTP status 429): throttled"}},
		"an API that is broken": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Status: 503, Body: planted})
			return reader(t, c)
		}, kind: unavailable, says: []string{"refused without a code that is known (HTTP status 503)"}},
		"an API that talks nonsense": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Status: 200, Body: planted})
			return reader(t, c)
		}, kind: unavailable, says: []string{"the answer is none that Google documents"}},
		"an API that says too much": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Operation: "GetRepository", Status: 400, Body: `{"error": {"status": "` + planted + ` 1"}}`})
			return reader(t, c)
		}, kind: refused, says: []string{"look at the repository repo", "HTTP status 400"}},
		"an API that redirects": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Status: 307, Body: planted})
			return reader(t, c)
		}, kind: unavailable, says: []string{"HTTP status 307"}},
		"an API that hangs up": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Reset: true})
			return reader(t, c)
		}, kind: unavailable, says: []string{"artifactregistry.googleapis.com: ", "the way there has to be open"}},
		"settings that cannot be had": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			c.Fail(cloud.Fault{Service: "google-artifacts", Operation: "GetProjectSettings", Status: 500})
			return container(t, c)
		}, image: "eu.gcr.io/my-project/app", kind: unavailable, says: []string{"see whether Artifact Registry serves eu.gcr.io", "INTERNAL (HTTP status 500)"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			log := logged(t)
			req := backends.Request{Image: image}
			if test.image != "" {
				req.Image = test.image
			}
			err := checked(t, checkable(t, c, test.prepare(t, c)), req, log)
			kind := ""
			if e, ok := errors.AsType[*backends.Error](err); ok {
				kind = map[backends.Kind]string{backends.KindUnavailable: unavailable, backends.KindRefused: refused, backends.KindMisconfigured: "misconfigured"}[e.Kind]
			} else if err != nil {
				kind = "none"
			}
			if kind != test.kind {
				t.Errorf("kind %q, want %q: %v", kind, test.kind, err)
			}
			for _, want := range test.says {
				if !strings.Contains(fmt.Sprint(err), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
			for _, want := range test.logs {
				if !strings.Contains(log.String(), want) {
					t.Errorf("%s\nlacks %q", log, want)
				}
			}
			if test.kind == "" && !slices.ContainsFunc(test.logs, func(s string) bool { return strings.Contains(s, "WARN") || strings.Contains(s, "missing=") }) && strings.Contains(log.String(), "level=WARN") {
				t.Errorf("it warns: %s", log)
			}
		})
	}
}

// TestWhatIsAsked: only what the image needs, as whoever would pull, and of the API that is nearest to the image's host.
func TestWhatIsAsked(t *testing.T) {
	for image, want := range map[backends.Image][]string{
		"europe-west1-docker.pkg.dev/my-project/repo/app":     {"artifactregistry.googleapis.com GetRepository", "artifactregistry.googleapis.com TestIamPermissions"},
		"docker.europe-west1.rep.pkg.dev/my-project/repo/app": {"artifactregistry.europe-west1.rep.googleapis.com GetRepository", "artifactregistry.europe-west1.rep.googleapis.com TestIamPermissions"},
		"gcr.io/my-project/app":                               {"artifactregistry.googleapis.com GetProjectSettings", "artifactregistry.googleapis.com GetRepository", "artifactregistry.googleapis.com TestIamPermissions"},
		"mirror.gcr.io/library/nginx":                         nil,
		"":                                                    nil,
	} {
		t.Run(string(image), func(t *testing.T) {
			c := setUp(t)
			c.AddGoogleRegistry("gcr.io", project)
			c.AddGoogleRegistry("docker.europe-west1.rep.pkg.dev", project)
			c.GrantReader(project, puller)
			b := checkable(t, c, Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))})
			if err := checked(t, b, backends.Request{Image: image}, logged(t)); err != nil {
				t.Fatal(err)
			}
			var asked []string
			for _, r := range c.Requests() {
				if r.Service != "google-artifacts" {
					continue
				}
				asked = append(asked, r.Host+" "+r.Operation)
				if r.Principal != puller {
					t.Errorf("asked as %q", r.Principal)
				}
			}
			if slices.Sort(asked); !slices.Equal(asked, want) {
				t.Errorf("asked %q, want %q", asked, want)
			}
		})
	}
}

// TestMember: how an allow policy spells each identity, and the member in the command to be pasted.
func TestMember(t *testing.T) {
	external := func(t *testing.T, fields map[string]any) Config {
		t.Helper()
		return Config{CredentialsFile: write(t, "external.json", object(t, fields))}
	}
	const inPool = "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/pool/subject/"
	for name, test := range map[string]struct {
		prepare     func(t *testing.T, c *cloud.Cloud) Config
		pod         bool
		annotations map[string]string
		want        string
		note, shell string
	}{
		"a key": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "key.json", c.ServiceAccountKeyFile(puller))}
		}, want: "serviceAccount:" + puller},
		"an account for the project": {prepare: func(*testing.T, *cloud.Cloud) Config {
			return Config{ServiceAccounts: []ProjectAccount{{Projects: []string{project}, Impersonate: puller}}}
		}, want: "serviceAccount:" + puller},
		"the machine": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			return Config{}
		}, want: "serviceAccount:" + node},
		"a machine that does not say": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: node}).Environ()...)
			c.Fail(cloud.Fault{Service: "google-metadata", Status: 404})
			return Config{}
		}, want: "serviceAccount:ADDRESS", note: "its metadata server does not say"},
		"a pod of GKE's that acts as itself": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			setenv(t, c.GoogleInstance(cloud.ServiceAccount{Email: "my-project.svc.id.goog"}).Environ()...)
			return Config{}
		}, want: "principal://iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/my-project.svc.id.goog/subject/ns/NAMESPACE/sa/NAME", note: "that this runs as"},
		"a user": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			return Config{CredentialsFile: write(t, "adc.json", c.AddGoogleUser(human))}
		}, want: "user:ADDRESS", note: "whoever has logged in for /"},
		"a user by name": {prepare: func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"type": "authorized_user", "account": human})
		}, want: "user:" + human},
		"a file that impersonates": {prepare: func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"type": "impersonated_service_account", "service_account_impersonation_url": "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/" + puller + ":generateAccessToken"})
		}, want: "serviceAccount:" + puller},
		"an external account": {prepare: func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"type": "external_account", "audience": pool.Audience()})
		}, want: inPool + "SUBJECT", note: "SUBJECT is what the pool's provider maps"},
		"a workforce pool": {prepare: func(t *testing.T, _ *cloud.Cloud) Config {
			return external(t, map[string]any{"type": "external_account_authorized_user", "audience": "//iam.googleapis.com/locations/global/workforcePools/people/providers/p"})
		}, want: "principal://iam.googleapis.com/locations/global/workforcePools/people/subject/SUBJECT", note: "SUBJECT"},
		"another issuer's token": {prepare: func(t *testing.T, c *cloud.Cloud) Config {
			token := c.AddIssuer(issuer).Token(map[string]any{"aud": "https:" + pool.Audience(), "sub": "it's $(me)"})
			return Config{WebIdentity: webidentity.Config{File: &webidentity.File{Path: write(t, "token", []byte(token))}}, WorkloadIdentityProvider: resource(pool)}
		}, want: inPool + "it's $(me)", note: "maps google.subject to the token's sub", shell: `'` + inPool + `it'\''s $(me)'`},
		"AWS": {prepare: func(*testing.T, *cloud.Cloud) Config {
			return Config{AWS: true, WorkloadIdentityProvider: resource(awsPool)}
		}, want: "principalSet://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/aws/attribute.aws_role/arn:aws:sts::ACCOUNT:assumed-role/ROLE", note: "ACCOUNT and ROLE"},
		"a pod": {
			pod: true, annotations: map[string]string{pullAnnotation: "true"},
			want: "principal://iam.googleapis.com/projects/NUMBER/locations/global/workloadIdentityPools/my-project.svc.id.goog/subject/ns/team-a/sa/builder", note: "NUMBER is that of project my-project",
			shell: `"principal://iam.googleapis.com/projects/$(gcloud projects describe my-project --format='value(projectNumber)')/locations/global/workloadIdentityPools/my-project.svc.id.goog/subject/ns/team-a/sa/builder"`,
		},
		"a pod that acts as a service account": {pod: true, annotations: map[string]string{pullAnnotation: "true", accountAnnotation: puller}, want: "serviceAccount:" + puller},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			cfg := Config{}
			if test.prepare != nil {
				cfg = test.prepare(t, c)
			}
			b := backendFor(t, c, cfg)
			req := backends.Request{Image: image, Annotations: test.annotations}
			if test.pod {
				gke := c.AddGKECluster(cluster)
				req.Token = tokenFor(gke, "team-a", "builder", cluster.Pool())
			}
			who, err := b.who(req, registry{project: project})
			if err != nil {
				t.Fatal(err)
			}
			got := b.google.member(t.Context(), who)
			if got.name != test.want || (got.note == "") != (test.note == "") || !strings.Contains(got.note, test.note) {
				t.Errorf("%+v, want %s", got, test.want)
			}
			if test.shell == "" {
				test.shell = trust.Quote(test.want)
			}
			if got.shell() != test.shell {
				t.Errorf("in a shell %s, want %s", got.shell(), test.shell)
			}
		})
	}
}

func TestPlaceOf(t *testing.T) {
	hosts := []string{"*-docker.s3nsregistry.fr", "docker.*.rep.registry.example", "registry.example.org"}
	for image, want := range map[backends.Image]place{
		"us-docker.pkg.dev/p-roject/r/a":                     {"p-roject", "us", "r", "artifactregistry.googleapis.com"},
		"US-docker.pkg.dev:443/p-roject/r/a":                 {"p-roject", "us", "r", "artifactregistry.googleapis.com"},
		"docker.us-east1.rep.pkg.dev/p-roject/r/a":           {"p-roject", "us-east1", "r", "artifactregistry.us-east1.rep.googleapis.com"},
		"gcr.io/p-roject/a":                                  {"p-roject", "us", "gcr.io", "artifactregistry.googleapis.com"},
		"us.gcr.io/p-roject/a":                               {"p-roject", "us", "us.gcr.io", "artifactregistry.googleapis.com"},
		"eu.gcr.io/example.com/p-roject/a":                   {"example.com:p-roject", "europe", "eu.gcr.io", "artifactregistry.googleapis.com"},
		"asia.gcr.io:443/p-roject/a":                         {"p-roject", "asia", "asia.gcr.io", "artifactregistry.googleapis.com"},
		"u-france-east1-docker.s3nsregistry.fr/p-roject/r/a": {"p-roject", "u-france-east1", "r", "artifactregistry.s3nsapis.fr"},
		"mirror.gcr.io/library/nginx":                        {},
		"container.cloud.google.com/p-roject/a":              {},
		"registry.example.org/p-roject/r/a":                  {},
	} {
		reg, ok := parseHost(image, hosts, "s3nsapis.fr")
		if !ok {
			t.Fatalf("%s is no registry", image)
		}
		got, ok := placeOf(reg)
		if ok != (want != place{}) {
			t.Errorf("%s: known: %v", image, ok)
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); ok && diff != "" {
			t.Errorf("%s: %s", image, diff)
		}
	}
}

// TestCheckWithoutImage finds out who the node is, and asks no API.
func TestCheckWithoutImage(t *testing.T) {
	c := setUp(t)
	log := logged(t)
	file := write(t, "key.json", c.ServiceAccountKeyFile(puller))
	if err := checked(t, backendFor(t, c, Config{CredentialsFile: file, UniverseDomain: defaultUniverse}), backends.Request{}, log); err != nil || !strings.Contains(log.String(), "identity=serviceAccount:"+puller) {
		t.Errorf("%v\n%s", err, log)
	}
	c.DeleteServiceAccountKeys(puller)
	if err := checked(t, backendFor(t, c, Config{CredentialsFile: file}), backends.Request{}, log); err == nil || !strings.Contains(err.Error(), "invalid_grant") {
		t.Errorf("a deleted key: %v", err)
	}
	log.Reset()
	if err := checked(t, backendFor(t, c, Config{CredentialsFile: file, PodIdentity: settings.PodIdentityRequire}), backends.Request{}, log); err != nil || !strings.Contains(log.String(), "only a request with a pod's token can be checked") {
		t.Errorf("%v\n%s", err, log)
	}
}

// TestTheProgram: one that is missing, that others could change, or that misbehaves.
func TestTheProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes, and no scripts")
	}
	script := func(text string) func(*testing.T) string {
		return func(t *testing.T) string {
			t.Helper()
			file := write(t, checkProgram.Name, []byte("#!/bin/sh\n"+text))
			if err := os.Chmod(file, 0o755); err != nil {
				t.Fatal(err)
			}
			return file
		}
	}
	for name, test := range map[string]struct {
		path func(t *testing.T) string
		kind backends.Kind
		want string
	}{
		"none": {func(*testing.T) string { return "/nonexistent/gar-check" }, backends.KindMisconfigured, "check needs gar-check beside the backend, and there is no /nonexistent/gar-check: install it"},
		"one that others can write": {func(t *testing.T) string {
			file := script("exit 0")(t)
			if err := os.Chmod(file, 0o757); err != nil {
				t.Fatal(err)
			}
			return file
		}, backends.KindMisconfigured, "is not safe to use"},
		"one that is no program":              {func(t *testing.T) string { return write(t, checkProgram.Name, nil) }, backends.KindMisconfigured, "not executable"},
		"one that fails, with what it read":   {script("cat >&2; exit 3"), backends.KindUnavailable, "exit status 3"},
		"one that prints what it read":        {script("cat; exit 3"), backends.KindUnavailable, "exit status 3"},
		"one that prints no answer":           {script("cat >/dev/null; echo " + planted), backends.KindUnavailable, "it printed no answer"},
		"one that prints too much":            {script("cat >/dev/null; head -c 70000 /dev/zero"), backends.KindUnavailable, "too much"},
		"one that is told by its arguments":   {script(`cat >/dev/null; [ $# = 0 ] || echo '{}'; exit 4`), backends.KindUnavailable, "exit status 4"},
		"one that looks into its environment": {script("cat >/dev/null; if env | grep -q GOOGLE_; then exit 5; fi; if env | grep -q ya29; then exit 6; fi; exit 7"), backends.KindUnavailable, "exit status 7"},
	} {
		t.Run(name, func(t *testing.T) {
			c := setUp(t)
			c.GrantReader(project, puller)
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "key.json", c.ServiceAccountKeyFile(puller)))
			b := backendFor(t, c, Config{})
			path := test.path(t)
			b.program = func() (string, error) { return path, nil }
			err := checked(t, b, backends.Request{Image: image}, logged(t))
			if e, ok := errors.AsType[*backends.Error](err); !ok || e.Kind != test.kind || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
	t.Run("one that is asked nothing", func(t *testing.T) {
		cmd := exec.Command(checker)
		cmd.Stdin = strings.NewReader(`{"token": "` + planted + `", "project": 1}`)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "want a question as JSON") || strings.Contains(string(out), planted) {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// TestTheProxyHoldsForACheck: the setting's, the environment's, and what needs none.
func TestTheProxyHoldsForACheck(t *testing.T) {
	c := setUp(t)
	c.GrantReader(project, puller)
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", write(t, "key.json", c.ServiceAccountKeyFile(puller)))
	b := checkable(t, c, Config{}) // reaches the cloud by its own setting
	setenv(t, "HTTPS_PROXY=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1")
	if err := checked(t, b, backends.Request{Image: image}, logged(t)); err != nil {
		t.Errorf("the setting: %v", err)
	}
	setenv(t, c.Environ()...)
	b.cfg.Proxy = ""
	if err := checked(t, b, backends.Request{Image: image}, logged(t)); err != nil {
		t.Errorf("the environment: %v", err)
	}
	setenv(t, "HTTPS_PROXY=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1")
	if err := checked(t, b, backends.Request{Image: image}, logged(t)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a proxy that is not there: %v", err)
	}
	setenv(t, c.Environ()...)
	setenv(t, "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent")
	if err := checked(t, b, backends.Request{Image: image}, logged(t)); err == nil || !strings.Contains(err.Error(), "belongs into SSL_CERT_FILE") {
		t.Errorf("a CA that is not known: %v", err)
	}
}
