//go:build linux

package upgrade

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/credential-broker/credential-broker/broker/config"
)

var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "cb-upgrade-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	bin = dir
	for _, b := range []struct{ in, pkg, out string }{
		{"../..", "./cmd/credential-broker", "credential-broker"},
		{"../..", "./examples/backend-go", "backends/credential-backend-userfile"},
		{"../..", "./cmd/credential-backend-dockerconfig", "backends/credential-backend-dockerconfig"},
		{".", "./backend", "backends/credential-backend-first"},
		{".", "./backend", "backends/credential-backend-later"},
	} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, b.out), b.pkg)
		build.Dir, build.Env = b.in, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", b.pkg, err, out)
			return 1
		}
	}
	return m.Run()
}

// broker runs today's with a provider for each backend, named like it, and gives what it printed, and what the backends were asked.
func broker(t *testing.T, backends, stdin string, args ...string) (stdout, stderr string, asked []string, err error) {
	t.Helper()
	dir := t.TempDir()
	file, noted := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "asked")
	text := "apiVersion: credential-broker.io/v1alpha1\nkind: BrokerConfig\nproviders:\n"
	for backend := range strings.FieldsSeq(backends) {
		text += fmt.Sprintf("- name: %s\n  backend: %[1]s\n  matchImages: [registry.example]\n  env: [{name: ASKED, value: %s}]\n", backend, noted)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "credential-broker"), args...)
	cmd.Env = append(os.Environ(), "CREDENTIAL_BROKER_CONFIG="+file, "CREDENTIAL_BROKER_AGENT=")
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if content, readErr := os.ReadFile(noted); readErr == nil {
		asked = strings.Fields(strings.ReplaceAll(string(content), "unknown ", "unknown:"))
		slices.Sort(asked)
		asked = slices.Compact(asked)
	}
	return out.String(), errs.String(), asked, err
}

func request(image string) string {
	return `{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"` + image + `"}`
}

func TestTodaysBrokerWithBackendsOfOtherReleases(t *testing.T) {
	for _, tt := range []struct {
		backend, cacheKeyType string
		asked, checked        []string
	}{
		{"first", "Registry", []string{"Configure", "GetCredentials"}, []string{"Configure", "Describe", "GetCredentials"}},
		// A scope that the broker does not know is the narrow one: Image is always right.
		{"later", "Image", []string{"Configure", "GetCredentials"}, []string{"Check", "Configure", "Describe", "GetCredentials"}},
	} {
		t.Run(tt.backend, func(t *testing.T) {
			out, errs, asked, err := broker(t, tt.backend, request("registry.example/app"))
			if err != nil {
				t.Fatalf("%v\n%s", err, errs)
			}
			var got map[string]any
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatal(err)
			}
			want := map[string]any{
				"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": tt.cacheKeyType, "cacheDuration": "1m0s",
				"auth": map[string]any{"registry.example": map[string]any{"username": "u", "password": "p-of-" + tt.backend}},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			for _, method := range asked {
				if method != "Describe" && !slices.Contains(tt.asked, method) {
					t.Errorf("it was asked for %s", method)
				}
			}
			if _, errs, _, err := broker(t, tt.backend, "", "validate"); err != nil {
				t.Errorf("validate: %v\n%s", err, errs)
			}
			out, errs, asked, err = broker(t, tt.backend, "", "get", "registry.example/app")
			if err != nil || !strings.Contains(out, "1 credential") {
				t.Errorf("get: %v\n%s%s", err, out, errs)
			}
			if diff := cmp.Diff(tt.checked, asked); diff != "" {
				t.Errorf("get asked for:\n%s", diff)
			}
		})
	}
}

func TestAKindOfErrorThatTodaysBrokerDoesNotKnowIsUnavailable(t *testing.T) {
	// What another provider answers is not kept beside one that is unavailable, and for a minute beside one that refuses.
	for image, kept := range map[string]string{"tired": "0s", "refused": "1m0s"} {
		out, errs, _, err := broker(t, "first later", request("registry.example/"+image))
		if err != nil {
			t.Fatalf("%v\n%s", err, errs)
		}
		var got struct {
			CacheKeyType, CacheDuration string
			Auth                        map[string]struct{ Password string }
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		if got.CacheDuration != kept || got.CacheKeyType != "Image" || len(got.Auth) != 1 || got.Auth["registry.example"].Password != "p-of-first" {
			t.Errorf("%s: %s, want the other provider's credentials for %s", image, out, kept)
		}
		if alone, errs, _, err := broker(t, "later", request("registry.example/"+image)); err == nil || alone != "" || !strings.Contains(errs, `provider "later": `) || !strings.Contains(errs, image+" today") {
			t.Errorf("%s: %v\n%s\n%s", image, err, alone, errs)
		}
	}
}

// started is today's backend, as a broker of another release starts it.
func started(t *testing.T, name, versions string) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "cb-") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "backends/credential-backend-"+name))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), CookieKey + "=" + CookieValue, "PLUGIN_PROTOCOL_VERSIONS=" + versions, "PLUGIN_UNIX_SOCKET_DIR=" + dir}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		lifeline.Close()
		cmd.Wait()
		os.RemoveAll(dir)
	})
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		fields := strings.Split(lines.Text(), "|")
		if len(fields) < 5 {
			continue
		}
		if want := []string{"1", "1", "unix", fields[3], "grpc"}; !slices.Equal(fields[:5], want) {
			t.Fatalf("handshake %q", lines.Text())
		}
		conn, err := grpc.NewClient("unix:"+fields[3], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	t.Fatal("no handshake")
	return nil
}

func TestBrokersOfOtherReleasesWithTodaysBackends(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	settings := map[string]string{
		"userfile":     `{"files":{"registry.example":"` + write("password", "u:a-password") + `"}}`,
		"dockerconfig": `{"file":"` + write("config.json", `{"auths":{"registry.example":{"username":"u","password":"a-password"}}}`) + `"}`,
	}
	for _, release := range []struct {
		name, versions, extra string
		load                  func() (*Protocol, error)
	}{{"first", "1", "", First}, {"later", "1,2", ` later: "x"`, Later}} {
		for name, config := range settings {
			t.Run(release.name+" broker, "+name, func(t *testing.T) {
				protocol, err := release.load()
				if err != nil {
					t.Fatal(err)
				}
				conn := started(t, name, release.versions)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				ask := func(method, text string) string {
					t.Helper()
					response, err := protocol.Ask(ctx, conn, method, text+release.extra)
					if err != nil {
						t.Fatalf("%s: %v", method, err)
					}
					return response.String()
				}
				if got := ask("Describe", ""); !strings.Contains(got, `"`+name+`"`) {
					t.Errorf("Describe: %s", got)
				}
				if got := ask("Configure", fmt.Sprintf("settings: %q provider: \"p\"", config)); got != "" {
					t.Errorf("Configure: %s", got)
				}
				if got := ask("GetCredentials", `image: "registry.example/app"`); !strings.Contains(got, "registry.example") || strings.Contains(got, "error") {
					t.Errorf("GetCredentials: %s", strings.ReplaceAll(got, "a-password", "…"))
				}
				if release.name == "later" { // asked for what its features do not name
					if _, err := protocol.Ask(ctx, conn, "Foresee", ""); status.Code(err) != codes.Unimplemented {
						t.Errorf("Foresee: %v", err)
					}
				}
			})
		}
	}
}

var update = flag.Bool("update", false, "write what is kept of a release, once, at that release: what the first one's configuration means, and the Go API of each whose folder for it is empty")

func TestTheConfigurationOfTheFirstReleaseMeansTheSame(t *testing.T) {
	text, err := os.ReadFile("testdata/v0.1.0/config.yaml")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml") // a clone's file may be anybody's
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	loaded.Sources, loaded.Warnings = nil, nil // they name the file, and warnings may be added
	for _, p := range loaded.Providers {
		p.At = ""
	}
	got, err := json.MarshalIndent(loaded, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/v0.1.0/config.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	if err := json.Unmarshal(kept, &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &is); err != nil {
		t.Fatal(err)
	}
	// What later releases add is not looked at; what there was has the value it had.
	for _, lost := range missing("", was, is) {
		t.Error(lost)
	}
}

// missing says what of a is not in b. Lists are of equal length.
func missing(at string, a, b any) []string {
	switch a := a.(type) {
	case map[string]any:
		other, _ := b.(map[string]any)
		var all []string
		for name, value := range a {
			all = append(all, missing(at+"."+name, value, other[name])...)
		}
		return all
	case []any:
		other, _ := b.([]any)
		if len(a) != len(other) {
			return []string{fmt.Sprintf("%s: there were %d and are %d", at, len(a), len(other))}
		}
		var all []string
		for i := range a {
			all = append(all, missing(fmt.Sprintf("%s[%d]", at, i), a[i], other[i])...)
		}
		return all
	}
	if !cmp.Equal(a, b) {
		return []string{fmt.Sprintf("%s: was %v and is %v", at, a, b)}
	}
	return nil
}
