//go:build linux

package node

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credential-broker/credential-broker/broker/doctor"
)

// examined is what `credential-broker doctor -o json` prints.
type examined struct {
	Problems int              `json:"problems"`
	Findings []doctor.Finding `json:"findings"`
}

// examine has a program's doctor look at the node, as an operator does, and shows what it prints.
func (n *Node) examine(t *testing.T, program string) (found examined) {
	t.Helper()
	run := func(flags ...string) (string, error) {
		command := exec.CommandContext(t.Context(), program, append([]string{"doctor", "--kubelet-pid", fmt.Sprint(n.Kubelet.PID())}, flags...)...) // other tests have kubelets that are none
		command.Env = n.env()
		output, err := command.Output()
		return string(output), err
	}
	text, _ := run()
	t.Logf("credential-broker doctor\n%s", text)
	output, err := run("-o", "json")
	if err := json.Unmarshal([]byte(output), &found); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if (err == nil) != (found.Problems == 0) {
		t.Errorf("%d problems, and the exit status says otherwise: %v", found.Problems, err)
	}
	return found
}

// mustBeHealthy has the doctor find everything, and nothing to mend.
func (n *Node) mustBeHealthy(t *testing.T, program, config string, notes ...string) {
	t.Helper()
	module, err := os.ReadFile(filepath.Join(sourceDir(), "kubernetes/go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^require k8s\.io/kubernetes (\S+)$`).FindStringSubmatch(string(module))
	if len(version) != 2 {
		t.Fatal("kubernetes/go.mod requires no Kubernetes")
	}
	found := n.examine(t, program)
	if found.Problems != 0 {
		t.Errorf("%d problems on a node on which nothing is wrong", found.Problems)
	}
	for what, words := range map[string]string{
		"kubelet": fmt.Sprintf("process %d, %s, runs as root", n.Kubelet.PID(), n.kubelet), "kubelet version": version[1],
		"kubelet flags": fmt.Sprintf("--image-credential-provider-config=%s --image-credential-provider-bin-dir=%s", n.Providers, n.BinDir),
		"kubelet's credential provider configuration": n.Providers, "kubelet's bin directory": n.BinDir, "configuration": config, "kubelet's entry": "entry credential-broker covers", "kubelet restart": "was started after",
	} {
		if !slices.ContainsFunc(found.Findings, func(f doctor.Finding) bool {
			return f.Verdict == doctor.OK && f.What == what && strings.Contains(f.Text, words)
		}) {
			t.Errorf("not found: %s: %s", what, words)
		}
	}
	for _, f := range found.Findings {
		if f.Verdict == doctor.Unknown || f.Verdict == doctor.Noted && !slices.Contains(notes, f.What) {
			t.Errorf("a false alarm: %s %s: %s", f.Verdict, f.What, f.Text)
		}
	}
}

// operator does on the node what a remedy says, letter by letter. In the place of systemctl is a program that only notes what it was told: the rig does it then.
func (n *Node) operator(t *testing.T, remedy string) {
	t.Helper()
	told := n.path("tmp/systemctl")
	if err := os.Remove(told); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "sh", "-euc", remedy)
	command.Env = append(n.env(), "PATH="+n.path("usr/bin")+":"+os.Getenv("PATH"))
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("the remedy, %s: %v\n%s", remedy, err, output)
	}
	content, err := os.ReadFile(told)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		switch strings.TrimSpace(line) {
		case "daemon-reload":
		case "restart kubelet":
			n.RestartKubelet(t)
		case "enable --now credential-broker.socket": // the packages' unit, whose socket starts the agent
			n.StartAgent(t)
		default:
			t.Fatalf("the remedy tells systemctl: %s", line)
		}
	}
}

// What is right on a real node is found to be right, and of what goes wrong on one the doctor names the cause first, with what mends it.
func TestStandaloneTheDoctorFindsWhatIsWrongAndItsRemedyMendsIt(t *testing.T) {
	n := New(t)
	east, west := n.Registry(t, map[string]string{"east": "e-right"}), n.Registry(t, map[string]string{"west": "w-right"})
	program := n.path("usr/bin/credential-broker") // a link, as the packages have it
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(n.Libexec, "credential-broker"), program); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(n.Write(t, "usr/bin/systemctl", "#!/bin/sh\necho \"$@\" >>"+n.path("tmp/systemctl")+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	provider := func(name string, r *Registry) string {
		return fmt.Sprintf("- {name: %s, backend: dockerconfig, matchImages: [%q], config: {file: %s}}\n", name, r.Host, n.Login(t, name, r, name, name[:1]+"-right"))
	}
	settings := fmt.Sprintf("log: {file: %s}\n", n.path("logs/broker.log"))
	providers := "providers:\n" + provider("east", east)
	n.Configure(t, settings+providers)
	entries := n.Enter(t)
	n.StartKubelet(t)
	n.mustBeHealthy(t, program, n.Config)
	n.StaticPod(t, "healthy", east.Push(t, "team/healthy"))
	n.Running(t, "default", "healthy")

	backend := filepath.Join(n.Libexec, "backends/credential-backend-dockerconfig")
	for _, mistake := range []struct {
		name    string
		make    func()
		image   *Registry // whose the pod is that comes then
		what    string    // is wrong, and so on: of the first finding
		text    string
		remedy  string
		wrong   int  // findings
		suffers bool // the pod does
	}{
		{"narrow", func() {
			n.Write(t, "etc/kubernetes/credential-providers.yaml", strings.ReplaceAll(entries, east.Host, east.Host+"/elsewhere"))
			n.RestartKubelet(t)
		}, east, "kubelet's entry", fmt.Sprintf("no pattern of matchImages covers %q of provider \"east\"", east.Host), "kubelet-config --config " + n.Config, 1, true},
		{"unread", func() {
			started := time.Now()
			await(t, "two seconds: the doctor knows to a second when the kubelet was started", n.Kubelet, func() (bool, string) { return time.Since(started) > 2*time.Second, "" })
			providers += provider("west", west)
			n.Configure(t, settings+providers)
			n.Enter(t)
		}, west, "kubelet restart", n.Providers + " was changed at", "systemctl daemon-reload && systemctl restart kubelet", 1, true},
		{"writable", func() {
			if err := os.Chmod(backend, 0o777); err != nil {
				t.Fatal(err)
			}
		}, east, "backend of east", "can be written by everybody", "chmod go-w " + backend, 2, true}, // the other provider has the same backend
		{"no-agent", func() {
			if err := os.MkdirAll(n.path("run"), 0o700); err != nil {
				t.Fatal(err)
			}
			settings += fmt.Sprintf("agent: {socket: %s}\n", n.path("run/agent.sock"))
			n.Configure(t, settings+providers)
			n.Enter(t)
			n.RestartKubelet(t)
		}, west, "agent", n.path("run/agent.sock"), "systemctl enable --now credential-broker.socket", 1, false},
	} {
		t.Logf("MISTAKE: %s", mistake.name)
		mistake.make()
		n.StaticPod(t, mistake.name, mistake.image.Push(t, "team/"+mistake.name))
		if mistake.suffers {
			n.Refused(t, "default", mistake.name)
		} else {
			n.Running(t, "default", mistake.name)
		}
		found := n.examine(t, program)
		if found.Problems != mistake.wrong {
			t.Errorf("%d problems, want %d", found.Problems, mistake.wrong)
		}
		first := doctor.WorstFirst(found.Findings)[0]
		if first.Verdict != doctor.Wrong || first.What != mistake.what || !strings.Contains(first.Text, mistake.text) || !strings.Contains(first.Remedy, mistake.remedy) {
			t.Fatalf("the first is %s %s: %s -> %s", first.Verdict, first.What, first.Text, first.Remedy)
		}
		n.operator(t, first.Remedy)
		n.mustBeHealthy(t, program, n.Config)
		n.Running(t, "default", mistake.name)
		if t.Failed() {
			return // what is wrong may still be
		}
	}
}
