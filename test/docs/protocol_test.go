package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	backendv1 "github.com/credential-broker/credential-broker/proto/backend/v1"
)

func TestABackendMadeFromTheProtocolDocumentAloneAnswers(t *testing.T) {
	s := newSandbox(t, repo, bin)
	plain := filepath.Join(s.root, "opt/backends/credential-backend-plain")
	build := exec.Command("go", "build", "-o", plain, "./plain")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	err := s.write(block{attrs: map[string]string{"file": "/etc/credential-broker/config.yaml"}, text: `apiVersion: credential-broker.io/v1alpha1
kind: BrokerConfig
providers:
- name: plain
  backend: /opt/backends/credential-backend-plain
  matchImages: ["registry.example"]
  config: {username: robot, password: a-secret}
`})
	if err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]string{
		"credential-broker validate":                 "valid /etc/credential-broker/config.yaml: 1 provider\n",
		"credential-broker get registry.example/app": "registry.example  robot     [redacted]  plain\n",
	} {
		output, status, err := s.run(command)
		if err != nil || status != 0 || !strings.Contains(output, want) {
			t.Errorf("%s: status %d, %v\n%s", command, status, err, output)
		}
	}
	output, status, err := s.run("sed -i 's/username/usrname/' /etc/credential-broker/config.yaml; credential-broker validate")
	if err != nil || status != 1 || !strings.Contains(output, `unknown field "usrname"`) {
		t.Errorf("validate of wrong settings: status %d, %v\n%s", status, err, output)
	}
}

func TestTheProtocolDocumentHasTheCodesConstants(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(repo, "docs/protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"`" + backendv1.Handshake.MagicCookieKey + "` | `" + backendv1.Handshake.MagicCookieValue + "`",
		"separated by commas: `" + strconv.Itoa(backendv1.ProtocolVersion) + "`",
		"| a message, in either direction | " + strconv.Itoa(backendv1.MaxMessageBytes>>20) + " MiB |",
		"| credentials of one answer | 1,000 |",
		"| the lease of an answer | " + strconv.Itoa(backendv1.MaxLeaseBytes>>10) + " KiB |",
		"| spans of one answer | " + strconv.Itoa(backendv1.MaxSpans) + " are used |",
	} {
		if !strings.Contains(string(content), want) {
			t.Errorf("docs/protocol.md does not say %q", want)
		}
	}
	if backendv1.MaxCredentials != 1000 {
		t.Errorf("MaxCredentials is %d: mend docs/protocol.md", backendv1.MaxCredentials)
	}
}
