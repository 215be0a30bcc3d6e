package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

// scene is what one side is put into: a cloud of its own, made in the same way for each, a request and an environment.
type scene struct {
	*testing.T
	*cloud.Cloud
	// home is the program's HOME.
	home string
	// image, token and annotations are the kubelet's request.
	image, token string
	annotations  map[string]string
	// env is the environment besides PATH, HOME, TMPDIR and the cloud's.
	env []string
	// settings are our provider's `config`. The peers have none: a row that needs some is beyond them.
	settings map[string]any
	// provider is what our provider's entry has in the place of what it has for ECR.
	provider map[string]any
	// timeout is our provider's; empty: its default.
	timeout string
	// patience is how long is waited for an answer. 0: a minute, the kubelet's.
	patience time.Duration
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{T: t, Cloud: cloud.New(t), home: t.TempDir()}
	if err := os.Chmod(s.home, 0o755); err != nil {
		t.Fatal(err)
	}
	return s
}

// write makes a file below the home directory and gives its path.
func (s *scene) write(name, content string, mode os.FileMode) string {
	s.Helper()
	file := filepath.Join(s.home, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		s.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		s.Fatal(err)
	}
	return file
}

// request is the kubelet's, in the one version that the official provider knows.
func (s *scene) request() string {
	request := map[string]any{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderRequest", "image": s.image}
	if s.token != "" {
		request["serviceAccountToken"], request["serviceAccountAnnotations"] = s.token, s.annotations
	}
	return encode(s.T, request)
}

func encode(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// side is one of the programs that are compared.
type side struct {
	name string
	ask  func(*scene) raw
}

var (
	official = side{"official provider", askOfficial}
	helper   = side{"ECR helper", askHelper}
	broker   = side{"broker", askBroker}
)

// raw is how a program ended.
type raw struct {
	stdout, said string
	code         int
	late         bool // it was ended after the scene's patience
	took         time.Duration
	auth         map[string]login
	keyType      string
	duration     *string
}

type login struct{ Username, Password string }

// run runs a program to its end.
func (s *scene) run(stdin string, path string, args ...string) raw {
	s.Helper()
	return s.runUntil(s.Context(), stdin, path, args...)
}

// runUntil is run for a program that is ended when ctx is done.
func (s *scene) runUntil(ctx context.Context, stdin string, path string, args ...string) raw {
	s.Helper()
	patience := s.patience
	if patience == 0 {
		patience = time.Minute
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = slices.Concat([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "TMPDIR=" + s.TempDir()}, s.Environ(), s.env)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok && ctx.Err() == nil {
		s.Fatalf("run %s: %v", path, err)
	}
	return raw{stdout: stdout.String(), said: stderr.String(), code: cmd.ProcessState.ExitCode(), late: ctx.Err() != nil, took: time.Since(began)}
}

// kubelet reads a response as the kubelet would.
func (s *scene) kubelet(r raw) raw {
	s.Helper()
	if r.code != 0 {
		if r.stdout != "" {
			s.Errorf("exit status %d, and yet something on stdout", r.code)
		}
		return r
	}
	var response struct {
		APIVersion, Kind, CacheKeyType string
		CacheDuration                  *string
		Auth                           map[string]login
	}
	if err := json.Unmarshal([]byte(r.stdout), &response); err != nil || response.Kind != "CredentialProviderResponse" || response.APIVersion != "credentialprovider.kubelet.k8s.io/v1" {
		s.Fatalf("no response of the kubelet's (%v), stderr:\n%s", err, r.said)
	}
	r.auth, r.keyType, r.duration = response.Auth, response.CacheKeyType, response.CacheDuration
	return r
}

// askOfficial starts the provider as the kubelet does.
func askOfficial(s *scene) raw {
	return s.kubelet(s.run(s.request(), path(program.CloudProviderAWS)))
}

// roleAnnotation is what both read from a service account.
const roleAnnotation = "eks.amazonaws.com/ecr-role-arn"

// audience is that of the pods' tokens.
const audience = "sts.amazonaws.com"

// askBroker starts the broker as the kubelet does, with one provider.
func askBroker(s *scene) raw {
	return s.kubelet(s.run(s.request(), path(program.Broker), "--config", s.brokerConfig(nil)))
}

// brokerConfig writes a configuration with one provider, for the scene's image, and gives its path. top are settings of the whole broker.
func (s *scene) brokerConfig(top map[string]any) string {
	s.Helper()
	host, _, _ := strings.Cut(s.image, "/")
	provider := map[string]any{"name": "ecr", "backend": "ecr", "matchImages": []string{host}, "inheritEnv": []string{"AWS_*"}, "config": s.settings}
	if s.settings == nil {
		provider["config"] = map[string]any{}
	}
	maps.Copy(provider, s.provider)
	if s.timeout != "" {
		provider["timeout"] = s.timeout
	}
	if s.token != "" && s.provider == nil {
		provider["tokenAttributes"] = map[string]any{"serviceAccountTokenAudience": audience, "optionalServiceAccountAnnotationKeys": []string{roleAnnotation}}
	}
	config := map[string]any{"apiVersion": "credential-broker.io/v1alpha1", "kind": "BrokerConfig", "providers": []any{provider}}
	maps.Copy(config, top)
	return s.write("broker.json", encode(s.T, config), 0o600)
}

// askHelper asks the ECR helper.
func askHelper(s *scene) raw { return s.dockerHelper(path(program.ECRLogin)) }

// dockerHelper does what docker does with a credential helper.
func (s *scene) dockerHelper(path string) raw {
	host, _, _ := strings.Cut(s.image, "/")
	r := s.run("https://"+host, path, "get")
	if r.code != 0 {
		r.said += r.stdout
		return r
	}
	var answer struct{ ServerURL, Username, Secret string }
	if err := json.Unmarshal([]byte(r.stdout), &answer); err != nil {
		s.Fatalf("no answer of a credential helper: %v", err)
	}
	r.auth = map[string]login{strings.TrimPrefix(answer.ServerURL, "https://"): {answer.Username, answer.Secret}}
	return r
}

// outcome is what an answer comes to, in words that are equal where two sides do the same.
type outcome map[field]string

// field is one thing in which sides may differ.
type field string

const (
	result   field = "result"   // "token", "nothing", "failure" or "no answer"
	registry field = "registry" // takes, or why not
	authKeys field = "keys"
	keyType  field = "cacheKeyType"
	duration field = "cacheDuration"
	api      field = "API"      // the host that was asked for the token at last
	identity field = "identity" // as whom, without the session's name
	session  field = "session"  // its name
	says     field = "tells"    // which of the row's facts the error tells
)

// takes is what the registry says of a good token.
const takes = "takes it"

// order is that in which a document names them.
var order = []field{result, registry, authKeys, keyType, duration, api, identity, session, says}

// ask puts one side into a scene of its own.
func (sd side) put(t *testing.T, r row) outcome {
	t.Helper()
	s := newScene(t)
	r.given(s)
	answer := sd.ask(s)
	o := s.outcome(answer, r)
	if testing.Verbose() {
		t.Logf("%s, %d ms: %v\n%s", sd.name, answer.took.Milliseconds(), o, answer.said)
		for _, request := range s.Requests() {
			t.Logf("  %+v", request)
		}
	}
	return o
}

// tokenLife is how long ECR's tokens last.
const tokenLife = 12 * time.Hour

func (s *scene) outcome(r raw, row row) outcome {
	s.Helper()
	o := outcome{}
	for _, request := range s.Requests() {
		if request.Service != "ecr" && request.Service != "ecr-public" {
			continue
		}
		o[api] = request.Host
		if request.Principal != "" {
			o[identity], o[session] = principal(request.Principal)
		}
	}
	switch {
	case r.late:
		o[result] = "no answer"
		return o
	case r.code != 0:
		o[result] = "failure"
		var told []string
		for _, fact := range row.tells {
			if fact.sign.MatchString(r.said) {
				told = append(told, fact.name)
			}
		}
		o[says] = strings.Join(told, ", ")
		return o
	case len(r.auth) == 0:
		o[result] = "nothing"
	default:
		o[result] = "token"
		o[authKeys] = strings.Join(slices.Sorted(maps.Keys(r.auth)), " ")
		for key, l := range r.auth {
			host, _, _ := strings.Cut(s.image, "/")
			switch {
			case key != host && key != s.image:
				o[registry] = "the kubelet looks for " + host
				continue
			case strings.HasPrefix(l.Username, "AWS") && !strings.Contains(host, "ecr"):
				o[registry] = "AWS's, given to " + host
				continue
			case row.differs[result] == googlesOwn:
				o[registry] = "Google's, given to " + host
				continue
			}
			o[registry] = s.pull(l)
		}
	}
	o[keyType] = r.keyType
	if r.keyType != "" {
		o[duration] = s.duration(r.duration)
	}
	return o
}

// pull lets the fake registry judge.
func (s *scene) pull(l login) string {
	host, path, _ := strings.Cut(s.image, "/")
	if err := s.Pull(strings.TrimSuffix(host, ":443")+"/"+path, l.Username, l.Password); err != nil {
		return err.Error()
	}
	return takes
}

// duration says what a cacheDuration comes to.
func (s *scene) duration(text *string) string {
	s.Helper()
	if text == nil {
		return "left to the kubelet's default"
	}
	d, err := time.ParseDuration(*text)
	if err != nil {
		s.Fatalf("cacheDuration: %v", err)
	}
	near := func(want time.Duration) bool { return d <= want && want-d < time.Minute }
	switch {
	case near(tokenLife / 2):
		return "half the token's life"
	case near(tokenLife - 5*time.Minute):
		return "the token's life less 5 minutes"
	}
	return d.Round(5 * time.Minute).String()
}

var user = regexp.MustCompile(`^arn:[a-z-]+:iam::([0-9]{12}):user/(.+)$`)

var assumed = regexp.MustCompile(`^arn:([a-z-]+):sts::([0-9]{12}):assumed-role/([^/]+)/(.+)$`)

// sessions that the cloud names are named at random.
var randomSession = regexp.MustCompile(`^(i-0|eks-)[0-9A-Za-z-]+$`)

// principal takes an ARN apart: who, and the name of the session.
func principal(arn string) (who, session string) {
	if parts := assumed.FindStringSubmatch(arn); parts != nil {
		if session = parts[4]; randomSession.MatchString(session) {
			session = "named by the cloud"
		}
		return fmt.Sprintf("role %s of %s", parts[3], parts[2]), session
	}
	if parts := user.FindStringSubmatch(arn); parts != nil {
		return fmt.Sprintf("user %s of %s", parts[2], parts[1]), ""
	}
	return arn, ""
}
