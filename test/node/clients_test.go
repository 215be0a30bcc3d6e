//go:build linux

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// helper is the name under which the broker speaks Docker's protocol for credential helpers.
const helper = "docker-credential-broker"

// user is somebody at the node's terminal: the helper is installed, in PATH, and the broker has a provider for the registry.
type user struct {
	*Node
	registry *Registry
	password string
}

func newUser(t *testing.T) *user {
	t.Helper()
	u := &user{Node: New(t), password: "r1ght-pAssword"}
	u.registry = u.Registry(t, map[string]string{"robot": u.password})
	u.Configure(t, fmt.Sprintf("providers:\n- {name: files, backend: dockerconfig, matchImages: [%q], config: {file: %s}}\n", u.registry.Host, u.Login(t, "files", u.registry, "robot", u.password)))
	if err := os.Symlink("credential-broker", filepath.Join(u.Libexec, helper)); err != nil { // as the packages have it
		t.Fatal(err)
	}
	return u
}

// docker writes the configuration of Docker's clients in the user's home.
func (u *user) docker(t *testing.T, format string, args ...any) {
	t.Helper()
	u.Write(t, ".docker/config.json", fmt.Sprintf(format, args...))
}

// run runs a client, and gives what it prints, in which there must be no password.
func (u *user) run(t *testing.T, variables []string, program string, args ...string) (printed string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	// Nothing else in PATH: the machine may have a helper of this name installed, which would answer in the place of the node's.
	command.Env = append(u.env(), append([]string{"PATH=" + u.Libexec, "DOCKER_CONFIG=" + u.path(".docker"), "CREDENTIAL_BROKER_CONFIG=" + u.Config}, variables...)...)
	output, err := command.CombinedOutput()
	if bytes.Contains(output, []byte(u.password)) {
		t.Errorf("%s shows the password", filepath.Base(program))
	}
	return strings.TrimSpace(string(output)), err
}

// program finds a client of this node's, and shows which version it is.
func (u *user) program(t *testing.T, name string) string {
	t.Helper()
	program, err := Program(name)
	if err != nil {
		t.Fatal(err)
	}
	version, err := u.run(t, nil, program, "--version")
	if err != nil {
		t.Fatalf("%s --version: %v\n%s", name, err, version)
	}
	t.Logf("%s --version: %s", name, version)
	return program
}

// asksForPassword are the words that a client has of the registry when it gives no credential.
var asksForPassword = regexp.MustCompile(`401 Unauthorized|no basic auth credentials`)

// mustRefuse sees that a client without the helper is refused, and for no other reason than that: a pull that needed none would show nothing.
func mustRefuse(t *testing.T, printed string, err error) {
	t.Helper()
	if err == nil || !asksForPassword.MatchString(printed) {
		t.Fatalf("without the helper: %v\n%s", err, printed)
	}
	lines := strings.Split(printed, "\n")
	t.Logf("without the helper: %s", lines[len(lines)-1])
}

// crictl knows no helpers: what the helper answers is handed to it, as docs/docker-credential-helper.md shows.
func TestStandaloneCrictlPullsWithWhatDockerCredentialBrokerAnswers(t *testing.T) {
	u := newUser(t)
	crictl := u.program(t, "crictl")
	image := u.registry.Push(t, "team/crictl")
	socket := "unix://" + u.path("containerd.sock")
	run := func(variables []string, args ...string) (string, error) {
		return u.run(t, variables, crictl, append([]string{"--runtime-endpoint", socket, "--image-endpoint", socket}, args...)...)
	}
	there := func() bool {
		_, err := run(nil, "inspecti", image)
		return err == nil
	}

	printed, err := run(nil, "pull", image)
	mustRefuse(t, printed, err)
	if there() {
		t.Fatal("the image is there before it is pulled")
	}

	ask := exec.CommandContext(t.Context(), filepath.Join(u.Libexec, helper), "get")
	ask.Env, ask.Stdin = append(u.env(), "CREDENTIAL_BROKER_CONFIG="+u.Config), strings.NewReader(u.registry.Host+"\n")
	answer, err := ask.Output()
	var login struct{ Username, Secret string }
	if err == nil {
		err = json.Unmarshal(answer, &login)
	}
	if err != nil {
		t.Fatalf("%s get: %v", helper, err)
	}
	if printed, err = run([]string{"CRICTL_CREDS=" + login.Username + ":" + login.Secret}, "pull", image); err != nil {
		t.Fatalf("crictl pull: %v\n%s", err, printed)
	}
	if !there() {
		t.Error("the image is not there after it was pulled")
	}
	t.Logf("with the helper's answer: crictl has pulled %s", image)
}

// BuildKit's client asks the helper, by docker's library, and its daemon pulls into the node's containerd. Both ways to name the helper are tried.
func TestStandaloneBuildKitPullsWithDockerCredentialBroker(t *testing.T) {
	u := newUser(t)
	buildctl := u.program(t, "buildctl")
	address := u.startBuildKit(t)
	for i, configuration := range []string{fmt.Sprintf(`{"credHelpers":{%q:"broker"}}`, u.registry.Host), `{"credsStore":"broker"}`} {
		image := u.registry.Push(t, fmt.Sprintf("team/built%d", i)) // another one each time: what BuildKit has, it does not ask for again
		source, built := fmt.Sprintf("build%d", i), u.path(fmt.Sprintf("built%d", i))
		u.Write(t, source+"/Dockerfile", "FROM "+image+"\n")
		build := func() (string, error) {
			return u.run(t, nil, buildctl, "--addr", address, "build", "--progress", "plain", "--frontend", "dockerfile.v0",
				"--local", "context="+u.path(source), "--local", "dockerfile="+u.path(source), "--output", "type=local,dest="+built)
		}
		u.docker(t, "{}")
		printed, err := build()
		mustRefuse(t, printed, err)
		u.docker(t, "%s", configuration)
		if printed, err = build(); err != nil {
			t.Fatalf("buildctl build with %s: %v\n%s", configuration, err, printed)
		}
		if _, err := os.Stat(filepath.Join(built, "serial")); err != nil {
			t.Errorf("what buildctl build gives with %s is not the image: %v", configuration, err)
		}
		t.Logf("with %s: buildctl build gives the files of %s", configuration, image)
	}
}

// startBuildKit starts BuildKit's daemon as a client of the node's containerd, and gives the address of its socket.
func (u *user) startBuildKit(t *testing.T) (address string) {
	t.Helper()
	buildkitd := u.program(t, "buildkitd")
	socket := u.path("buildkitd.sock")
	config := u.Write(t, "buildkitd.toml", fmt.Sprintf("[registry.%q]\n  http = true\n", u.registry.Host))
	p, err := u.startProcess("buildkitd", exec.Command(buildkitd, "--config", config, "--root", u.path("buildkit"), "--addr", "unix://"+socket,
		"--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr", u.path("containerd.sock"), "--containerd-worker-snapshotter", "native"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.end)
	await(t, "buildkitd", p, func() (bool, string) {
		connection, err := net.Dial("unix", socket)
		if err != nil {
			return false, err.Error()
		}
		_ = connection.Close()
		return true, ""
	})
	return "unix://" + socket
}
