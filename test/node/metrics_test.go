//go:build linux

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const metricsPods = 12

// measured is what the kubelet's metrics say of its plugins.
type measured struct {
	label     string
	count     float64
	seconds   float64
	errors    float64
	bounds    []string
	cumulated []float64
}

// What the kubelet itself measures, with two native providers, and with the broker in their place. With NODE_PICTURE=FILE it draws that.
func TestStandaloneTheKubeletsMetricsBeforeAndAfter(t *testing.T) {
	var all []measured
	for _, label := range []string{"two native providers", "the broker, no agent", "the broker, with an agent"} {
		t.Run(label, func(t *testing.T) { all = append(all, measure(t, label)) })
	}
	if len(all) != 3 {
		return
	}
	for _, m := range all {
		t.Logf("%s: %.0f runs, %.0f errors, %.0f ms each", m.label, m.count, m.errors, 1000*m.seconds/m.count)
	}
	if file := os.Getenv("NODE_PICTURE"); file != "" {
		if err := os.WriteFile(filepath.Clean(file), []byte(metricsPicture(all)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func measure(t *testing.T, label string) measured {
	t.Helper()
	n := New(t)
	east, west := n.Registry(t, map[string]string{"east": "e-right"}), n.Registry(t, map[string]string{"west": "w-right"})
	programs := n.path("opt/providers")
	var entries strings.Builder
	for _, side := range []struct {
		name     string
		registry *Registry
	}{{"east", east}, {"west", west}} {
		n.Install(t, "test/node/nativeprovider", programs, side.name+"-provider")
		fmt.Fprintf(&entries, `- name: %[1]s-provider
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: [%[2]q]
  defaultCacheDuration: 0s
  args: [%[2]q, %[1]s, %[3]s]
  env: [{name: PASSWORD, value: %[4]s-right}]
`, side.name, side.registry.Host, n.path("opt/journal"), side.name[:1])
	}
	native := n.Write(t, "etc/kubernetes/native.yaml", "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n"+entries.String())
	if strings.HasPrefix(label, "the broker") {
		settings := n.Broker(t, "migrate", native, "--bin-dir", programs)
		agent := strings.HasSuffix(label, "with an agent")
		if agent {
			if err := os.MkdirAll(n.path("run"), 0o700); err != nil {
				t.Fatal(err)
			}
			settings += fmt.Sprintf("agent: {socket: %s}\n", n.path("run/agent.sock"))
		}
		n.Write(t, "etc/credential-broker/config.yaml", settings)
		n.Broker(t, "validate")
		n.Enter(t)
		n.StartKubelet(t)
		if agent {
			n.StartAgent(t)
		}
	} else {
		n.BinDir, n.Providers = programs, native
		n.StartKubelet(t)
	}
	for i := range metricsPods {
		n.StaticPod(t, fmt.Sprintf("pod-%d", i), []*Registry{east, west}[i%2].Push(t, fmt.Sprintf("team/app%d", i)))
	}
	for i := range metricsPods {
		n.Running(t, "default", fmt.Sprintf("pod-%d", i))
	}
	m := measured{label: label}
	sums := map[string]float64{}
	for line := range strings.Lines(n.Metrics(t)) {
		const prefix = "kubelet_credential_provider_plugin_"
		if !strings.HasPrefix(line, prefix) {
			continue
		}
		var value float64
		if _, err := fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &value); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		name, labels, _ := strings.Cut(strings.TrimPrefix(line, prefix), "{")
		switch name {
		case "duration_count":
			m.count += value
		case "duration_sum":
			m.seconds += value
		case "errors_total":
			m.errors += value
		case "duration_bucket":
			_, bound, _ := strings.Cut(labels, `le="`)
			bound, _, _ = strings.Cut(bound, `"`)
			if _, known := sums[bound]; !known {
				m.bounds = append(m.bounds, bound)
			}
			sums[bound] += value
		}
	}
	for _, bound := range m.bounds {
		m.cumulated = append(m.cumulated, sums[bound])
	}
	if m.count < metricsPods || m.errors != 0 || len(m.bounds) == 0 {
		t.Errorf("%d pods, and the kubelet's metrics say %+v", metricsPods, m)
	}
	return m
}

// metricsPicture is docs/node.svg: how many runs took how long, by the kubelet's own buckets.
func metricsPicture(all []measured) string {
	const left, top, height, width, base = 250.0, 50.0, 110.0, 56.0, 90.0
	var b strings.Builder
	add := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 440" font-family="system-ui, sans-serif" font-size="13" role="img" aria-labelledby="title">`)
	add(`  <title id="title">How long the kubelet's runs of its credential providers took, by its own metric, with two native providers and with the broker</title>`)
	add(`  <rect width="960" height="440" rx="8" fill="#fff"/>`)
	add(`  <text x="20" y="28" font-size="15" fill="#222">kubelet_credential_provider_plugin_duration: runs by the seconds that they took at most, %d pods</text>`, metricsPods)
	for i, m := range all {
		bottom := top + height*float64(i) + base
		add(`  <text x="20" y="%.0f" fill="#222">%s</text>`, bottom-46, m.label)
		add(`  <text x="20" y="%.0f" fill="#666">%.0f runs, %.0f ms each, errors: %.0f</text>`, bottom-26, m.count, 1000*m.seconds/m.count, m.errors)
		add(`  <path d="M%.0f %.1fH%.0f" stroke="#ddd"/>`, left, bottom, left+width*float64(len(m.bounds)))
		before := 0.0
		for j, cumulated := range m.cumulated {
			x, runs := left+width*float64(j), cumulated-before
			before = cumulated
			if runs > 0 {
				tall := runs / m.count * (base - 20)
				add(`  <rect x="%.1f" y="%.1f" width="%.0f" height="%.1f" fill="%s"/>`, x+6, bottom-tall, width-12, tall, []string{"#c2410c", "#b8860b", "#1d4ed8"}[i%3])
				add(`  <text x="%.1f" y="%.1f" text-anchor="middle" fill="#222">%.0f</text>`, x+width/2, bottom-tall-4, runs)
			}
			if i == len(all)-1 {
				add(`  <text x="%.1f" y="%.1f" text-anchor="middle" fill="#222">%s s</text>`, x+width/2, bottom+20, strings.Replace(m.bounds[j], "+Inf", "more", 1))
			}
		}
	}
	add(`</svg>`)
	return b.String()
}
