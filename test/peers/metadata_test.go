package peers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/test/peers/internal/program"
)

const (
	tokenHeader    = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	credentialsOf  = "/latest/meta-data/iam/security-credentials/"
)

// metadata is an instance metadata service.
type metadata struct {
	t   *testing.T
	url string
}

// ask makes one request, and gives status and body.
func (m metadata) ask(method, path string, headers ...string) (status int, body string) {
	m.t.Helper()
	status, body, err := m.try(method, path, headers...)
	if err != nil {
		m.t.Fatal(err)
	}
	return status, body
}

func (m metadata) try(method, path string, headers ...string) (status int, body string, err error) {
	m.t.Helper()
	request, err := http.NewRequestWithContext(m.t.Context(), method, m.url+path, nil)
	if err != nil {
		return 0, "", err
	}
	for pair := range slices.Chunk(headers, 2) {
		request.Header.Set(pair[0], pair[1])
	}
	direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := direct.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}

// token is a session token for so many seconds.
func (m metadata) token(seconds int) string {
	m.t.Helper()
	status, token := m.ask(http.MethodPut, "/latest/api/token", tokenTTLHeader, strconv.Itoa(seconds))
	if status != http.StatusOK {
		m.t.Fatalf("PUT token: status %d", status)
	}
	return token
}

// credentials are those of the instance's role, as the SDK asks for them.
func (m metadata) credentials() (role string, values map[string]string) {
	m.t.Helper()
	token := m.token(60)
	status, role := m.ask(http.MethodGet, credentialsOf, tokenHeader, token)
	if status != http.StatusOK {
		m.t.Fatalf("GET role: status %d", status)
	}
	role = strings.TrimSpace(role)
	status, text := m.ask(http.MethodGet, credentialsOf+role, tokenHeader, token)
	if err := json.Unmarshal([]byte(text), &values); err != nil || status != http.StatusOK {
		m.t.Fatalf("GET credentials: status %d, %v", status, err)
	}
	return role, values
}

// amazons starts Amazon's own mock of the service, which is one of the same role and session as ours.
func (s *scene) amazons(ours metadata) metadata {
	s.Helper()
	role, values := ours.credentials()
	values["Type"], values["Code"] = "AWS-HMAC", "Success"
	config := s.write("metadata.json", encode(s.T, map[string]any{"metadata": map[string]any{
		"paths":  map[string]string{"iam-security-credentials": credentialsOf + role},
		"values": map[string]any{"iam-security-credentials-role": role, "iam-security-credentials": values},
	}}), 0o600)
	for range 20 {
		if m, ok := s.amazonsAt(freePort(s.T), config, role, values["AccessKeyId"]); ok {
			return m
		}
	}
	s.Fatal("Amazon's mock does not listen")
	return metadata{}
}

// amazonsAt starts the mock at a port. It is somebody else who listens there, maybe a mock of another test, if that does not have the access key.
func (s *scene) amazonsAt(port, config, role, accessKey string) (m metadata, ok bool) {
	s.Helper()
	mock := exec.CommandContext(s.Context(), path(program.MetadataMock), "--config-file", config, "--hostname", "127.0.0.1", "--port", port, "--imdsv2")
	mock.Env = []string{"HOME=" + s.home, "PATH=/usr/bin:/bin"}
	var said bytes.Buffer
	mock.Stdout, mock.Stderr = &said, &said
	if err := mock.Start(); err != nil {
		s.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = mock.Wait(); close(ended) }()
	s.Cleanup(func() { _ = mock.Process.Kill(); <-ended })
	m = metadata{s.T, "http://127.0.0.1:" + port}
	answers, over := false, false
	until(30*time.Second, func() bool {
		select {
		case <-ended:
			over = true
			return true
		default:
		}
		status, token, err := m.try(http.MethodPut, "/latest/api/token", tokenTTLHeader, "60")
		if err != nil {
			return false
		}
		_, text, err := m.try(http.MethodGet, credentialsOf+role, tokenHeader, token)
		answers = err == nil && status == http.StatusOK && strings.Contains(text, accessKey)
		return true
	})
	return m, answers && !over
}

// freePort is a loopback port that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// until polls; false: the condition did not come about in time.
func until(atMost time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(atMost); ; <-time.After(10 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// TestTheFakeInstanceMetadataAnswersAsAmazonsMock asks both services what the SDK asks them, and what they must refuse.
func TestTheFakeInstanceMetadataAnswersAsAmazonsMock(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	ours := metadata{t, s.Instance(s.instanceRole()).URL()}
	theirs := s.amazons(ours)
	role, mine := ours.credentials()
	sameRole, same := theirs.credentials()
	if role != sameRole || !slices.Equal(slices.Sorted(maps.Keys(mine)), slices.Sorted(maps.Keys(same))) {
		t.Errorf("ours: role %s with fields %q; Amazon's: role %s with fields %q", role, slices.Sorted(maps.Keys(mine)), sameRole, slices.Sorted(maps.Keys(same)))
	}
	for _, request := range []struct {
		name, method, path string
		headers            func(metadata) []string
		want               int
	}{
		{"a token for a minute", http.MethodPut, "/latest/api/token", ttl("60"), 200},
		{"a token for six hours", http.MethodPut, "/latest/api/token", ttl("21600"), 200},
		{"a token for longer than there is", http.MethodPut, "/latest/api/token", ttl("21601"), 400},
		{"a token for no time", http.MethodPut, "/latest/api/token", ttl("0"), 400},
		{"a token, without saying how long", http.MethodPut, "/latest/api/token", none, 400},
		{"a token for a word", http.MethodPut, "/latest/api/token", ttl("long"), 400},
		{"the role, with a token", http.MethodGet, credentialsOf, granted(), 200},
		{"the role, without the slash", http.MethodGet, strings.TrimSuffix(credentialsOf, "/"), granted(), 200},
		{"the role, as in the first version", http.MethodGet, credentialsOf, none, 401},
		{"the role, with a made-up token", http.MethodGet, credentialsOf, made("bm9uZQ=="), 401},
		{"the credentials, with a token", http.MethodGet, credentialsOf + role, granted(), 200},
		{"the credentials, as in the first version", http.MethodGet, credentialsOf + role, none, 401},
		{"the credentials of another role", http.MethodGet, credentialsOf + "nobody", granted(), 404},
		{"something that is not there", http.MethodGet, "/latest/meta-data/no/such", granted(), 404},
		{"the region", http.MethodGet, "/latest/meta-data/placement/region", granted(), 200},
		{"the region, as in the first version", http.MethodGet, "/latest/meta-data/placement/region", none, 401},
	} {
		t.Run(request.name, func(t *testing.T) {
			for _, service := range []struct {
				name string
				m    metadata
			}{{"the fake cloud", ours}, {"Amazon's mock", theirs}} {
				service.m.t = t
				if status, _ := service.m.ask(request.method, request.path, request.headers(service.m)...); status != request.want {
					t.Errorf("%s: status %d, want %d", service.name, status, request.want)
				}
			}
		})
	}
	t.Run("a token is refused when its time is over", func(t *testing.T) {
		for name, m := range map[string]metadata{"the fake cloud": ours, "Amazon's mock": theirs} {
			m.t = t
			token := m.token(1)
			over := func() bool {
				status, _ := m.ask(http.MethodGet, credentialsOf, tokenHeader, token)
				return status == http.StatusUnauthorized
			}
			if !until(30*time.Second, over) {
				t.Errorf("%s: the token goes on", name)
			}
		}
	})
}

func ttl(seconds string) func(metadata) []string {
	return func(metadata) []string { return []string{tokenTTLHeader, seconds} }
}

func made(token string) func(metadata) []string {
	return func(metadata) []string { return []string{tokenHeader, token} }
}
func none(metadata) []string { return nil }
func granted() func(metadata) []string {
	return func(m metadata) []string { return []string{tokenHeader, m.token(60)} }
}

// TestTheNodesIdentityComesFromAmazonsMock lets all programs take the node's identity from Amazon's own mock.
func TestTheNodesIdentityComesFromAmazonsMock(t *testing.T) {
	t.Parallel()
	for _, sd := range []side{official, helper, broker} {
		t.Run(sd.name, func(t *testing.T) {
			t.Parallel()
			o := sd.put(t, at(nodes, "instance metadata", func(s *scene) {
				mock := s.amazons(metadata{s.T, s.Instance(s.instanceRole()).URL()})
				s.add("AWS_EC2_METADATA_DISABLED=false", "AWS_EC2_METADATA_SERVICE_ENDPOINT="+mock.url)
			}))
			if got := fmt.Sprintf("%s, %s, %s", o[result], o[registry], o[identity]); got != "token, "+takes+", role instance of "+account {
				t.Error(got)
			}
		})
	}
}
