//go:build linux

package node

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Issue: one entry, a static pod: no API server, no tokens.
func TestStandaloneAStaticPodRunsOnAPrivateImageThroughOurOneEntry(t *testing.T) {
	n := New(t)
	registry := n.Registry(t, map[string]string{"robot": "right"})
	image := registry.Push(t, "team/app")

	n.Configure(t, fmt.Sprintf(`providers:
- name: files
  backend: dockerconfig
  matchImages: [%q]
  config: {file: %s}
`, registry.Host, n.Login(t, "files", registry, "robot", "right")))
	entries := n.Enter(t)
	if got := strings.Count(entries, "- name: "); got != 1 {
		t.Fatalf("%d entries, want one:\n%s", got, entries)
	}
	n.StartKubelet(t)
	n.StaticPod(t, "app", image)
	n.Running(t, "default", "app")
	n.mustHaveAsked(t, "credential-broker")
}

// The kubelet would try the values of two entries one after the other; with Fallback ours does the same in one.
func TestStandaloneOfTwoOverlappingProvidersTheSecondsCredentialIsTried(t *testing.T) {
	n := New(t)
	registry := n.Registry(t, map[string]string{"robot": "right"})
	providers := fmt.Sprintf(`providers:
- name: stale
  backend: dockerconfig
  matchImages: [%[1]q]
  config: {file: %[2]s}
- name: valid
  backend: dockerconfig
  matchImages: [%[1]q]
  config: {file: %[3]s}
`, registry.Host, n.Login(t, "stale", registry, "robot", "wrong"), n.Login(t, "valid", registry, "robot", "right"))

	// What shows that the first one's credential is in the way: by itself (First) it is all there is.
	n.Configure(t, "overlapPolicy: First\n"+providers)
	n.Enter(t)
	n.StartKubelet(t)
	n.StaticPod(t, "first", registry.Push(t, "team/first"))
	if words := n.Refused(t, "default", "first"); !strings.Contains(words, "401") && !strings.Contains(words, "authorization failed") && !strings.Contains(words, "authenticat") {
		t.Errorf("it failed for another reason: %s", words)
	}
	n.Configure(t, "overlapPolicy: Fallback\n"+providers)
	n.StaticPod(t, "fallback", registry.Push(t, "team/fallback"))
	n.Running(t, "default", "fallback")
	n.Running(t, "default", "first") // the kubelet tries it again, and no restart was needed for the new policy
}

// A provider that comes later needs no restart of the kubelet's, for the entry's patterns are wide enough: scenario 3 of the issue.
func TestStandaloneANewBackendAndProviderAreAddedWhilePodsRun(t *testing.T) {
	n := New(t)
	old, added := n.Registry(t, map[string]string{"robot": "right"}), n.Registry(t, map[string]string{"newcomer": "also-right"})
	files := fmt.Sprintf(`providers:
- name: files
  backend: dockerconfig
  matchImages: [%q]
  config: {file: %s}
`, old.Host, n.Login(t, "files", old, "robot", "right"))
	n.Configure(t, files)
	n.Enter(t, "--match", n.Pattern())
	n.StartKubelet(t)
	n.StaticPod(t, "old", old.Push(t, "team/old"))
	before := n.Running(t, "default", "old").Status.ContainerStatuses[0]
	kubelet := n.kubeletIs(t)

	n.StaticPod(t, "added", added.Push(t, "team/added"))
	n.Refused(t, "default", "added") // no provider is for its registry yet

	n.Install(t, "examples/backend-go", n.Libexec+"/backends", "credential-backend-userfile")
	n.Configure(t, files+fmt.Sprintf(`- name: added
  backend: userfile
  matchImages: [%q]
  config: {files: {%q: %s}}
`, added.Host, added.Host, n.Write(t, "etc/credential-broker/added", "newcomer:also-right\n")))
	n.Running(t, "default", "added")

	if now := n.kubeletIs(t); now != kubelet {
		t.Errorf("the kubelet was %s and is %s", kubelet, now)
	}
	after := n.Running(t, "default", "old").Status.ContainerStatuses[0]
	if after.ContainerID != before.ContainerID || after.RestartCount != before.RestartCount || !after.State.Running.StartedAt.Equal(&before.State.Running.StartedAt) {
		t.Errorf("the pod that ran was %+v and is %+v", before, after)
	}
	t.Logf("the kubelet is still %s; pod old still runs in %s, restarts %d", kubelet, after.ContainerID[:len("containerd://")+12], after.RestartCount)
}

// Scenario 5: a node with two providers of the kubelet's own is moved to the broker with `migrate`, and back.
func TestStandaloneANodeWithTwoNativeProvidersIsMovedAndMovedBack(t *testing.T) {
	n := New(t)
	east, west := n.Registry(t, map[string]string{"east": "e-right"}), n.Registry(t, map[string]string{"west": "w-right"})
	programs, journal := n.path("opt/providers"), n.path("opt/journal")
	for _, name := range []string{"east-provider", "west-provider"} {
		n.Install(t, "test/node/nativeprovider", programs, name)
	}
	native := n.Write(t, "etc/kubernetes/native.yaml", fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: east-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%[1]q]
  defaultCacheDuration: 0s
  args: [%[1]q, east, %[3]s]
  env: [{name: PASSWORD, value: e-right}]
- name: west-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%[2]q]
  defaultCacheDuration: 0s
  args: [%[2]q, west, %[3]s]
  env: [{name: PASSWORD, value: w-right}]
`, east.Host, west.Host, journal))
	pull := func(when string) {
		t.Helper()
		for _, registry := range []*Registry{east, west} {
			side := map[*Registry]string{east: "east", west: "west"}[registry]
			n.StaticPod(t, when+"-"+side, registry.Push(t, when))
		}
		for _, side := range []string{"east", "west"} {
			n.Running(t, "default", when+"-"+side)
			content, err := os.ReadFile(journal)
			if err != nil || !strings.Contains(string(content), side+"-provider ") || !strings.Contains(string(content), "/"+when) {
				t.Errorf("the journal of the programs has nothing of %s's pull %s: %v\n%s", side, when, err, content)
			}
		}
	}

	n.BinDir, n.Providers = programs, native
	n.StartKubelet(t)
	pull("native")
	n.mustHaveAsked(t, "east-provider", "west-provider")

	n.Kubelet.end()
	migrated := n.Broker(t, "migrate", native, "--bin-dir", programs)
	n.Write(t, "etc/credential-broker/config.yaml", migrated)
	n.Broker(t, "validate")
	n.BinDir, n.Providers = n.path("usr/libexec/kubernetes/credential-provider"), n.path("etc/kubernetes/credential-providers.yaml")
	n.Enter(t)
	n.StartKubelet(t)
	pull("moved")
	n.mustHaveAsked(t, "credential-broker")

	n.BinDir, n.Providers = programs, native
	n.RestartKubelet(t)
	pull("back")
	n.mustHaveAsked(t, "east-provider", "west-provider")
	content, _ := os.ReadFile(journal)
	t.Logf("the providers' own journal:\n%s", content)
}

// kubeletIs tells this kubelet from one that was started again.
func (n *Node) kubeletIs(t *testing.T) string {
	t.Helper()
	began, err := n.Kubelet.Began()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("process %d, begun at tick %s", n.Kubelet.PID(), began)
}

// mustHaveAsked sees in the kubelet's metrics that it ran these entries' programs, and no others, and that none failed.
func (n *Node) mustHaveAsked(t *testing.T, entries ...string) {
	t.Helper()
	const runs, errors = "kubelet_credential_provider_plugin_duration_count{", "kubelet_credential_provider_plugin_errors_total{"
	var asked []string
	for line := range strings.Lines(n.Metrics(t)) {
		switch {
		case strings.HasPrefix(line, runs):
			asked = append(asked, strings.TrimSpace(line))
		case strings.HasPrefix(line, errors):
			t.Errorf("a provider failed: %s", line)
		}
	}
	if len(asked) != len(entries) {
		t.Errorf("the kubelet ran %q, want %q", asked, entries)
	}
	for _, entry := range entries {
		if !strings.Contains(strings.Join(asked, "\n"), fmt.Sprintf("%q", entry)) {
			t.Errorf("the kubelet ran %q, not %q", asked, entry)
		}
	}
	t.Logf("the kubelet's metrics: %s", strings.Join(asked, "; "))
}
