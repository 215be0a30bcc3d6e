package cloud

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// bindingAudience is the audience of service accounts' tokens for identity bindings.
const bindingAudience = "api://AKSIdentityBinding"

// IdentityBinding is the proxy by which an AKS cluster's pods reach Entra for the managed identities that are bound to it: it takes their service accounts' tokens, and has its own taken by
// Entra (https://learn.microsoft.com/azure/aks/identity-bindings-concepts). It listens on loopback with a certificate of a CA of its own.
type IdentityBinding struct {
	c       *Cloud
	t       *tenant
	cluster *Issuer
	ca      *authority
	sni     string
	url     string

	mu    sync.Mutex
	bound map[string][]string // subjects by client id
}

// IdentityBinding starts a cluster's proxy for a tenant. The issuer is the cluster's.
func (c *Cloud) IdentityBinding(tenantID string, clusterIssuer *Issuer) *IdentityBinding {
	b := &IdentityBinding{c: c, t: c.tenantUnder("", tenantID), cluster: clusterIssuer, sni: strings.ToLower(random(12)) + ".identity-binding.test", bound: map[string][]string{}}
	if b.t == nil {
		panic("there is no tenant " + tenantID)
	}
	dir := filepath.Join(c.dir, b.sni)
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		b.ca, err = newAuthority(dir)
	}
	if err != nil {
		panic(err)
	}
	b.url = c.mustListenTLS("identity-binding", &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if hello.ServerName != b.sni { // the API server's address serves others too
			return nil, fmt.Errorf("the proxy is not called %q", hello.ServerName)
		}
		return b.ca.leaf(b.sni)
	}}, b)
	return b
}

// Environ tells a pod of it, as AKS's webhook does.
func (b *IdentityBinding) Environ() []string {
	return []string{"AZURE_KUBERNETES_TOKEN_PROXY=" + b.url, "AZURE_KUBERNETES_SNI_NAME=" + b.sni, "AZURE_KUBERNETES_CA_FILE=" + b.ca.file}
}

// URL is the proxy's address. SNIName and CAFile are what its certificate is for and of.
func (b *IdentityBinding) URL() string { return b.url }

// SNIName is the name that its certificate is for.
func (b *IdentityBinding) SNIName() string { return b.sni }

// CAFile is a PEM file with the CA that its certificate is of.
func (b *IdentityBinding) CAFile() string { return b.ca.file }

// issuer is whose tokens Entra takes for a managed identity that is bound to clusters.
func (b *IdentityBinding) issuer(clientID string) *Issuer {
	return b.c.AddIssuer("https://ib.oic.prod-aks.azure.com/" + b.t.ID + "/" + clientID)
}

// Bind lets a service account use a managed identity, as a role of the cluster does, and gives the identity the one federated credential that AKS makes for all clusters.
func (b *IdentityBinding) Bind(clientID, namespace, serviceAccount string) {
	clientID = strings.ToLower(clientID)
	issuer := b.issuer(clientID)
	b.c.mu.Lock()
	p := b.t.principals[clientID]
	if p == nil {
		b.c.mu.Unlock()
		panic("there is no managed identity " + clientID)
	}
	credential := FederatedCredential{Issuer: issuer.URL(), Subject: clientID, Audience: b.t.cloud.exchange}
	if !slices.Contains(p.Federated, credential) {
		p.Federated = append(slices.Clone(p.Federated), credential)
	}
	b.c.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bound[clientID] = append(b.bound[clientID], "system:serviceaccount:"+namespace+":"+serviceAccount)
}

// ServeHTTP is the proxy. What Entra is asked by it is in no log.
func (b *IdentityBinding) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, page, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case page == "v2.0/.well-known/openid-configuration":
		entryOf(r).operation("discovery")
	case page == "oauth2/v2.0/token", r.URL.Path == "/":
		entryOf(r).operation("token")
	}
	if b.c.faulty(w, r, "identity-binding", entryOf(r).name(), func(f Fault) { b.c.writeEntra(w, r, entraFault(f)) }) {
		return
	}
	switch entryOf(r).name() {
	case "discovery":
		b.forward(w, r, r.URL.Path, "")
	case "token":
		b.token(w, r)
	default:
		http.NotFound(w, r)
	}
}

// forward asks Entra in the client's stead.
func (b *IdentityBinding) forward(w http.ResponseWriter, r *http.Request, path, body string) {
	asked, err := http.NewRequestWithContext(unlogged(r.Context()), r.Method, "https://"+b.t.Authority+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	asked.Header = r.Header.Clone()
	answer := httptest.NewRecorder()
	b.c.lookup(b.t.Authority).ServeHTTP(answer, asked)
	maps.Copy(w.Header(), answer.Header())
	var refused struct {
		Codes []int `json:"error_codes"`
	}
	if err := json.Unmarshal(answer.Body.Bytes(), &refused); err == nil && len(refused.Codes) == 1 {
		entryOf(r).code(aadsts{number: refused.Codes[0]}.name())
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

// token judges the service account's token, and asks Entra with one of the proxy's own.
func (b *IdentityBinding) token(w http.ResponseWriter, r *http.Request) {
	form, no := entraForm(w, r)
	var subject string
	if no == nil {
		subject, no = b.judge(form.Get("client_assertion"))
	}
	client := strings.ToLower(form.Get("client_id"))
	if no == nil && !b.isBound(client, subject) {
		no = &aadsts{http.StatusForbidden, "access_denied", 0, "serviceaccount " + subject + " cannot use managed identity " + client + ": no identity binding lets it."}
	}
	if no != nil {
		b.refuse(w, r, *no)
		return
	}
	entryOf(r).principal(client)
	form.Set("client_assertion", b.issuer(client).Token(map[string]any{"sub": client, "aud": b.t.cloud.exchange}))
	path := r.URL.Path
	if path == "/" {
		path = "/" + b.t.ID + "/oauth2/v2.0/token"
	}
	b.forward(w, r, path, form.Encode())
}

func (b *IdentityBinding) isBound(client, subject string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.bound[client], subject)
}

// judge verifies a service account's token as the cluster's API server does, and gives its subject.
func (b *IdentityBinding) judge(token string) (string, *aadsts) {
	refused := func(why string) (string, *aadsts) {
		return "", &aadsts{http.StatusUnauthorized, "invalid_client", 0, "the service account's token is not valid: " + why}
	}
	claims, err := b.cluster.verify(token)
	if err != nil {
		return refused(err.Error())
	}
	now := b.c.Now()
	expires, _ := numericDate(claims, "exp")
	from, begins := numericDate(claims, "nbf")
	subject, _ := claims["sub"].(string)
	switch {
	case claims["iss"] != b.cluster.URL():
		return refused("another issuer's")
	case !now.Before(expires), begins && from.After(now.Add(time.Minute)):
		return refused("expired or not valid yet")
	case !slices.Contains(audiences(claims), bindingAudience):
		return refused("not for " + bindingAudience)
	}
	return subject, nil
}

// refuse is how the proxy refuses something itself.
func (*IdentityBinding) refuse(w http.ResponseWriter, r *http.Request, no aadsts) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]string{"error": no.code, "error_description": no.text})
}
