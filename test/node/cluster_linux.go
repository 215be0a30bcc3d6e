package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// Cluster is an API server with its etcd. There is no controller manager and no scheduler: what these would make, namespaces' service accounts and a pod's node, the functions below make.
type Cluster struct {
	Client kubernetes.Interface // an administrator's
	URL    string               // "https://127.0.0.1:41234", which is also the issuer of its tokens
	Server *Process

	node       *Node
	kubeconfig string // the node's
}

// Cluster starts etcd and an API server with the node authorizer and NodeRestriction admission, as real ones have them. A kubelet that is started afterwards joins it, as itself: system:node:node1.
func (n *Node) Cluster(t testing.TB) *Cluster {
	t.Helper()
	apiServer, err := Program("kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	etcd := n.startEtcd(t)
	port, err := freePort("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{URL: fmt.Sprintf("https://127.0.0.1:%d", port), node: n}
	admin, nodes, key := rand.Text(), rand.Text(), n.writeKey(t)
	tokens := n.Write(t, "etc/kubernetes/tokens.csv", fmt.Sprintf("%s,admin,admin,system:masters\n%s,system:node:%s,%s,system:nodes\n", admin, nodes, Name, Name))
	certificates := n.path("etc/kubernetes/pki")
	c.Server, err = n.startProcess("kube-apiserver", exec.Command(apiServer,
		"--etcd-servers", etcd, "--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(port), "--cert-dir", certificates,
		"--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "192.0.2.0/24", // nobody is told, nobody comes; of the range for documents
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--token-auth-file", tokens,
		"--service-account-issuer", c.URL, "--service-account-signing-key-file", key, "--service-account-key-file", key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Server.kill) // asked to end, it takes a minute
	config := &rest.Config{Host: c.URL, BearerToken: admin, TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(certificates, "apiserver.crt")}, QPS: 100, Burst: 100}
	await(t, "the API server", c.Server, func() (bool, string) {
		if _, err := os.Stat(config.CAFile); err != nil {
			return false, err.Error()
		}
		if c.Client, err = kubernetes.NewForConfig(config); err != nil {
			return false, err.Error()
		}
		_, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return err == nil, fmt.Sprint(err)
	})
	c.kubeconfig = n.Write(t, "etc/kubernetes/kubelet.conf", fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: u, user: {token: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, c.URL, config.CAFile, nodes))
	n.cluster = c
	return c
}

func (n *Node) startEtcd(t testing.TB) (url string) {
	t.Helper()
	var urls [2]string
	for i := range urls {
		port, err := freePort("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		urls[i] = fmt.Sprintf("http://127.0.0.1:%d", port)
	}
	p, err := n.startProcess("etcd", exec.Command(filepath.Join(n.packages, "usr/bin/etcd"),
		"--data-dir", n.path("etcd"), "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0], "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
		"--initial-cluster", "default="+urls[1], "--unsafe-no-fsync"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return urls[0] // the API server waits for it
}

// writeKey makes the key that service account tokens are signed with.
func (n *Node) writeKey(t testing.TB) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return n.Write(t, "etc/kubernetes/service-accounts.key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})))
}

// ServiceAccount makes a service account, and its namespace where there is none yet.
func (c *Cluster) ServiceAccount(t testing.TB, namespace, name string) {
	t.Helper()
	if _, err := c.Client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{}); err != nil {
		if _, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if _, err := c.Client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Pod makes a pod of a service account's, on this node.
func (c *Cluster) Pod(t testing.TB, namespace, account, name, image string) {
	t.Helper()
	pod := newPod(namespace, name, image)
	pod.Spec.ServiceAccountName = account
	if _, err := c.Client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// Apply makes what a text of ClusterRoles and ClusterRoleBindings says: `credential-broker kubelet-config --rbac` prints such a one, for kubectl.
func (c *Cluster) Apply(t testing.TB, text string) {
	t.Helper()
	for document := range strings.SplitSeq(text, "\n---\n") {
		var kind metav1.TypeMeta
		err := yaml.Unmarshal([]byte(document), &kind)
		if err != nil {
			t.Fatal(err)
		}
		switch kind.Kind {
		case "ClusterRole":
			var role rbacv1.ClusterRole
			if err = yaml.UnmarshalStrict([]byte(document), &role); err == nil {
				_, err = c.Client.RbacV1().ClusterRoles().Create(t.Context(), &role, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
			}
		case "ClusterRoleBinding":
			var binding rbacv1.ClusterRoleBinding
			if err = yaml.UnmarshalStrict([]byte(document), &binding); err == nil {
				_, err = c.Client.RbacV1().ClusterRoleBindings().Create(t.Context(), &binding, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict})
			}
		default:
			err = fmt.Errorf("neither a ClusterRole nor a ClusterRoleBinding, but %q", kind.Kind)
		}
		if err != nil {
			t.Fatalf("%v:\n%s", err, document)
		}
	}
}

// Event waits for an event of a pod's that has these words in its message, and gives it.
func (c *Cluster) Event(t testing.TB, namespace, pod, words string) *corev1.Event {
	t.Helper()
	var found *corev1.Event
	await(t, fmt.Sprintf("an event of pod %s/%s with %q", namespace, pod, words), c.node.Kubelet, func() (bool, string) {
		events, err := c.Client.CoreV1().Events(namespace).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
		if err != nil {
			return false, err.Error()
		}
		var seen []string
		for i := range events.Items {
			if found = &events.Items[i]; strings.Contains(found.Message, words) {
				return true, ""
			}
			seen = append(seen, found.Message)
		}
		return false, strings.Join(seen, "\n")
	})
	t.Logf("event of pod %s/%s: %s %s: %s", namespace, pod, found.Type, found.Reason, found.Message)
	return found
}

// keys are those that the API server says its tokens are signed with.
func (c *Cluster) keys(ctx context.Context) (*jose.JSONWebKeySet, error) {
	content, err := c.Client.Discovery().RESTClient().Get().AbsPath("/openid/v1/jwks").SetHeader("Accept", "application/jwk-set+json").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	var keys jose.JSONWebKeySet
	err = json.Unmarshal(content, &keys)
	return &keys, err
}
