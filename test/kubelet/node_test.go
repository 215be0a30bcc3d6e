package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"unsafe"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/sets"
	credentialproviderapi "k8s.io/kubelet/pkg/apis/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/plugin"

	"github.com/credential-broker/credential-broker/test/kubelet/internal/behaviour"
)

// The kubelet registers its providers once in a process's life, in these two variables. Emptying and exchanging them is what lets one process be many kubelets, each with
// its own cache. Nothing else of the kubelet's is changed but, in the fast layer, the one place where it would start a process.

//go:linkname registered k8s.io/kubernetes/pkg/credentialprovider/plugin.providers
var registered []registration

//go:linkname registeredNames k8s.io/kubernetes/pkg/credentialprovider/plugin.seenProviderNames
var registeredNames sets.String //nolint:staticcheck // the kubelet's variable has this type

type registration struct {
	name string
	impl unsafe.Pointer //nolint:unused // *plugin.pluginProvider: the layout is the kubelet's
}

//go:linkname encodeRequest k8s.io/kubernetes/pkg/credentialprovider/plugin.(*execPlugin).encodeRequest
func encodeRequest(execPlugin unsafe.Pointer, request *credentialproviderapi.CredentialProviderRequest) ([]byte, error)

//go:linkname decodeResponse k8s.io/kubernetes/pkg/credentialprovider/plugin.(*execPlugin).decodeResponse
func decodeResponse(execPlugin unsafe.Pointer, data []byte) (*credentialproviderapi.CredentialProviderResponse, error)

//go:linkname provideWithCoordinates k8s.io/kubernetes/pkg/credentialprovider/plugin.(*perPodPluginProvider).provideWithCoordinates
func provideWithCoordinates(provider unsafe.Pointer, image string) (credentialprovider.DockerConfig, *credentialprovider.ServiceAccountCoordinates)

// entry is one of the providers of a CredentialProviderConfig, in the words of the file.
type entry struct {
	Name                 string           `json:"name"`
	MatchImages          []string         `json:"matchImages"`
	DefaultCacheDuration string           `json:"defaultCacheDuration"`
	APIVersion           string           `json:"apiVersion"`
	Args                 []string         `json:"args,omitempty"`
	Env                  []envVar         `json:"env,omitempty"`
	TokenAttributes      *tokenAttributes `json:"tokenAttributes,omitempty"`
}

type envVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type tokenAttributes struct {
	Audience            string   `json:"serviceAccountTokenAudience"`
	CacheType           string   `json:"cacheType"`
	Require             bool     `json:"requireServiceAccount"`
	RequiredAnnotations []string `json:"requiredServiceAccountAnnotationKeys,omitempty"`
	OptionalAnnotations []string `json:"optionalServiceAccountAnnotationKeys,omitempty"`
}

// providerConfig is a CredentialProviderConfig as a file.
func providerConfig(entries []entry) []byte {
	out, err := json.Marshal(map[string]any{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": entries})
	if err != nil {
		panic(err)
	}
	return out
}

// pod is who pulls an image.
type pod struct {
	Namespace, Name, UID, ServiceAccount string
}

// identities are the API server's side of service account tokens.
type identities struct {
	token   func(namespace, name string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
	account func(namespace, name string) (*corev1.ServiceAccount, error)
}

// node is one kubelet with its registered providers and their caches.
type node struct {
	providers []registration
}

// startNode has the kubelet read, validate and register a configuration.
func startNode(configPath, binDir string, who identities) (*node, error) {
	registered, registeredNames = nil, sets.NewString()
	err := plugin.RegisterCredentialProviderPlugins(configPath, binDir, who.token, who.account)
	n := &node{providers: registered}
	registered, registeredNames = nil, sets.NewString()
	return n, err
}

// process is what stands for a plugin's process in the fast layer: a request in, standard output and exit status out.
type process func(request []byte) (stdout []byte, status int)

// startInProcess is startNode with functions instead of executables, by the entries' names.
func startInProcess(t testing.TB, entries []entry, processes map[string]process, who identities) *node {
	t.Helper()
	return startDocument(t, providerConfig(entries), processes, who)
}

// startDocument is startInProcess for a configuration as a file holds it. All entries are links to executables that exist.
func startDocument(t testing.TB, document []byte, processes map[string]process, who identities) *node {
	t.Helper()
	dir := scratchDir
	path := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(path, document, 0o600); err != nil {
		t.Fatal(err)
	}
	for name := range processes {
		link := filepath.Join(dir, name)
		if _, err := os.Lstat(link); err != nil {
			if err := os.Symlink("/proc/self/exe", link); err != nil { // the kubelet wants an executable to be there
				t.Fatal(err)
			}
		}
	}
	n, err := startNode(path, dir, who)
	if err != nil {
		t.Fatalf("the kubelet refuses the configuration %s: %v", document, err)
	}
	for i, p := range n.pods(pod{}) {
		field := p.Elem().FieldByName("provider").Elem().FieldByName("plugin")
		slot := reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
		run, ok := processes[n.providers[i].name]
		if !ok {
			t.Fatalf("no process for %s", n.providers[i].name)
		}
		slot.Set(reflect.ValueOf(inProcess{real: slot.Elem().UnsafePointer(), apiVersion: slot.Elem().Elem().FieldByName("apiVersion").String(), run: run}))
	}
	return n
}

// inProcess is the kubelet's execPlugin without its process.
type inProcess struct {
	real       unsafe.Pointer // *plugin.execPlugin
	apiVersion string
	run        process
}

var errPlugin = errors.New("the plugin failed")

func (p inProcess) ExecPlugin(_ context.Context, image, token string, annotations map[string]string) (*credentialproviderapi.CredentialProviderResponse, error) {
	request, err := encodeRequest(p.real, &credentialproviderapi.CredentialProviderRequest{Image: image, ServiceAccountToken: token, ServiceAccountAnnotations: annotations})
	if err != nil {
		return nil, err
	}
	stdout, status := p.run(request)
	if status != 0 {
		return nil, errPlugin
	}
	return readResponse(p.real, p.apiVersion, stdout)
}

// readResponse is the end of the kubelet's ExecPlugin.
func readResponse(plugin unsafe.Pointer, apiVersion string, stdout []byte) (*credentialproviderapi.CredentialProviderResponse, error) {
	gvk, err := kjson.DefaultMetaFactory.Interpret(stdout)
	if err != nil {
		return nil, err
	}
	if gvk.GroupVersion().String() != apiVersion {
		return nil, fmt.Errorf("apiVersion %s, not %s", gvk.GroupVersion(), apiVersion)
	}
	return decodeResponse(plugin, stdout)
}

// pods are the node's providers as the kubelet makes them for one pod.
func (n *node) pods(p pod) []reflect.Value {
	keyring := reflect.ValueOf(n.keyring(p)).Elem().FieldByName("providers")
	values := make([]reflect.Value, keyring.Len())
	for i := range values {
		values[i] = keyring.Index(i).Elem()
	}
	return values
}

func (n *node) keyring(p pod) credentialprovider.DockerKeyring {
	registered = n.providers
	defer func() { registered = nil }()
	return plugin.NewExternalCredentialProviderDockerKeyring(p.Namespace, p.Name, p.UID, p.ServiceAccount)
}

// lookup is what the kubelet would try for the image, in order.
func (n *node) lookup(image string, p pod) []behaviour.Value {
	lookups.Add(1)
	found, _ := n.keyring(p).Lookup(image)
	return valuesOf(found)
}

func valuesOf(found []credentialprovider.TrackedAuthConfig) []behaviour.Value {
	values := make([]behaviour.Value, len(found))
	for i, f := range found {
		values[i] = behaviour.Value{Username: f.Username, Password: f.Password}
	}
	return values
}

// configs are the answers of the node's providers, one by one, before the keyring puts them together.
func (n *node) configs(image string, p pod) []credentialprovider.DockerConfig {
	var configs []credentialprovider.DockerConfig
	for _, provider := range n.pods(p) {
		config, _ := provideWithCoordinates(provider.UnsafePointer(), image)
		configs = append(configs, config)
	}
	return configs
}

// indexOf is the kubelet's own index key of an auth key; false if it ignores the key.
func indexOf(key string) (string, bool) {
	keyring := &credentialprovider.BasicDockerKeyring{}
	keyring.Add(nil, credentialprovider.DockerConfig{key: {}})
	index := reflect.ValueOf(keyring).Elem().FieldByName("index")
	if index.Len() == 0 {
		return "", false
	}
	return index.Index(0).String(), true
}

// firstOnly is what the policy First makes of the answers of separate entries: for each index key the earliest provider's value, looked up by the kubelet.
func firstOnly(image string, configs []credentialprovider.DockerConfig) []behaviour.Value {
	keyring := &credentialprovider.BasicDockerKeyring{}
	taken := map[string]bool{}
	for _, config := range configs {
		kept := credentialprovider.DockerConfig{}
		for key, value := range config {
			if index, ok := indexOf(key); ok && !taken[index] {
				kept[key] = value
			}
		}
		for key := range kept {
			index, _ := indexOf(key)
			taken[index] = true
		}
		keyring.Add(nil, kept)
	}
	found, _ := keyring.Lookup(image)
	return valuesOf(found)
}

// spelledTwice says that one provider answered two spellings of one key that matters for the image: the kubelet takes them in random order.
func spelledTwice(image string, configs []credentialprovider.DockerConfig) bool {
	for _, config := range configs {
		seen := map[string]bool{}
		for key := range config {
			index, ok := indexOf(key)
			if !ok {
				continue
			}
			matched, _ := credentialprovider.URLsMatchStr(index, image)
			if seen[index] && (matched || index == "index.docker.io") {
				return true
			}
			seen[index] = true
		}
	}
	return false
}

// once drops repeated values.
func once(values []behaviour.Value) []behaviour.Value {
	kept := []behaviour.Value{}
	seen := map[behaviour.Value]bool{}
	for _, v := range values {
		if !seen[v] {
			seen[v] = true
			kept = append(kept, v)
		}
	}
	return kept
}

// playedBy is a make-believe provider as a process without a process.
func playedBy(p behaviour.Provider, step *int, asked func(behaviour.Request)) process {
	return func(data []byte) ([]byte, int) {
		var request behaviour.Request
		if err := json.NewDecoder(bytes.NewReader(data)).Decode(&request); err != nil {
			panic(err)
		}
		if asked != nil {
			asked(request)
		}
		return p.Answer(request.Image, *step).Write(request)
	}
}
