package cloud

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // Service Fabric's thumbprints are of SHA-1
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// IdentityEndpoint is what gives something in Azure that is no virtual machine the tokens of its managed identities. Its tenant is its own.
type IdentityEndpoint struct {
	*identities
	environ []string
	secret  string // that clients have to show

	mu         sync.Mutex
	challenges map[string]string // Azure Arc's secrets that are yet to be shown, with their files
}

// Environ tells a program of it.
func (e *IdentityEndpoint) Environ() []string { return append([]string(nil), e.environ...) }

func (c *Cloud) identityEndpoint(resource string, ids ...ManagedIdentity) *IdentityEndpoint {
	e := &IdentityEndpoint{identities: c.addIdentities(c.AddEntraTenant(EntraTenant{}).ID, resource, ids), secret: random(40), challenges: map[string]string{}}
	c.secrets.add(e.secret)
	return e
}

// judge finds out which identity's token is asked for, and with what parameters.
type judge func(http.ResponseWriter, *http.Request) (ManagedIdentity, url.Values, *refusal)

// handler answers as service's what judge does not refuse. write is the service's own form of a refusal.
func (e *IdentityEndpoint) handler(service string, write func(http.ResponseWriter, *http.Request, refusal), judge judge) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entryOf(r).operation("token")
		if e.c.faulty(w, r, service, "token", func(f Fault) { write(w, r, identityFault(f)) }) {
			return
		}
		id, query, no := judge(w, r)
		var answer map[string]any
		if no == nil {
			var token map[string]string
			if token, no = e.token(r, id, query.Get("resource")); no == nil {
				answer = map[string]any{}
				for name, value := range token {
					answer[name] = value
				}
			}
		}
		if no != nil {
			write(w, r, *no)
			return
		}
		switch service {
		case "service-fabric": // whose numbers are numbers
			answer["expires_on"] = e.c.Now().Add(identityLife).Unix()
		case "azure-arc": // which says what it was asked for
			for _, name := range selectors() {
				if value := query.Get(name); value != "" {
					answer[name] = value
				}
			}
		}
		writeJSON(w, http.StatusOK, answer)
	})
}

// selectors are the parameters by which one of several identities is meant.
func selectors() []string { return []string{"client_id", "object_id", "msi_res_id"} }

// AppServiceIdentity is App Service's, and Azure Functions' (https://learn.microsoft.com/azure/app-service/overview-managed-identity#rest-endpoint-reference).
func (c *Cloud) AppServiceIdentity(ids ...ManagedIdentity) *IdentityEndpoint {
	e := c.identityEndpoint("Microsoft.Web/sites/app", ids...)
	at := c.mustListen("app-service", e.handler("app-service", writeAppService, func(_ http.ResponseWriter, r *http.Request) (ManagedIdentity, url.Values, *refusal) {
		query := r.URL.Query()
		if r.URL.Path != "/msi/token" || r.Method != http.MethodGet {
			return ManagedIdentity{}, nil, &refusal{http.StatusNotFound, "NotFound", "There is no such page."}
		}
		if r.Header.Get("X-Identity-Header") != e.secret {
			return ManagedIdentity{}, nil, &refusal{http.StatusUnauthorized, "Unauthorized", "The X-IDENTITY-HEADER header is missing or wrong."}
		}
		if version := query.Get("api-version"); version != "2019-08-01" {
			return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "BadRequest", "Unsupported api-version '" + version + "'."}
		}
		return e.chosen(query, cmp.Or(query.Get("object_id"), query.Get("principal_id")), query.Get("mi_res_id"),
			"No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId.")
	}))
	e.environ = []string{"IDENTITY_ENDPOINT=" + at + "/msi/token", "IDENTITY_HEADER=" + e.secret}
	return e
}

// chosen is the identity that is meant, or a refusal; unknown is how the service says that there is none.
func (e *IdentityEndpoint) chosen(query url.Values, object, resource, unknown string) (ManagedIdentity, url.Values, *refusal) {
	if query.Get("resource") == "" {
		return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "BadRequest", "The parameter 'resource' is missing."}
	}
	id, problem := e.find(query.Get("client_id"), object, resource)
	if problem == noIdentity {
		problem = cmp.Or(unknown, problem)
	}
	if problem != "" {
		return id, nil, &refusal{http.StatusBadRequest, "BadRequest", problem}
	}
	return id, query, nil
}

func writeAppService(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]any{"statusCode": no.status, "message": no.message, "correlationId": newUUID()})
}

// AzureMLIdentity is Azure Machine Learning's on its compute (https://learn.microsoft.com/azure/machine-learning/how-to-identity-based-service-authentication).
func (c *Cloud) AzureMLIdentity(id ManagedIdentity) *IdentityEndpoint {
	e := c.identityEndpoint("Microsoft.MachineLearningServices/workspaces/computes", id)
	at := c.mustListen("azure-ml", e.handler("azure-ml", writeAppService, func(_ http.ResponseWriter, r *http.Request) (ManagedIdentity, url.Values, *refusal) {
		query := r.URL.Query()
		if r.Header.Get("Secret") != e.secret {
			return ManagedIdentity{}, nil, &refusal{http.StatusUnauthorized, "Unauthorized", "The secret header is missing or wrong."}
		}
		if version := query.Get("api-version"); version != "2017-09-01" || r.Method != http.MethodGet {
			return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "BadRequest", "Unsupported api-version '" + version + "'."}
		}
		query.Set("client_id", query.Get("clientid")) // as the App Service of 2017 had it
		return e.chosen(query, "", "", "")
	}))
	e.environ = []string{"MSI_ENDPOINT=" + at + "/MSI/auth", "MSI_SECRET=" + e.secret}
	return e
}

// CloudShellIdentity is Azure Cloud Shell's, which is its user's (https://learn.microsoft.com/azure/cloud-shell/msi-authorization).
func (c *Cloud) CloudShellIdentity(id ManagedIdentity) *IdentityEndpoint {
	e := c.identityEndpoint("Microsoft.Portal/consoles/default", id)
	at := c.mustListen("cloud-shell", e.handler("cloud-shell", writeFabric, func(w http.ResponseWriter, r *http.Request) (ManagedIdentity, url.Values, *refusal) {
		if r.Method != http.MethodPost || !strings.EqualFold(r.Header.Get("Metadata"), "true") {
			return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "BadRequest", "Required metadata header not specified"}
		}
		body, _ := bodyOf(w, r)
		form, err := url.ParseQuery(string(body))
		if err != nil || r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
			form = url.Values{}
		}
		form.Del("client_id") // there is but one
		return e.chosen(form, "", "", "")
	}))
	e.environ = []string{"MSI_ENDPOINT=" + at + "/oauth2/token"}
	return e
}

// ServiceFabricIdentity is Service Fabric's, over TLS with a certificate that vouches for itself
// (https://learn.microsoft.com/azure/service-fabric/how-to-managed-identity-service-fabric-app-code).
func (c *Cloud) ServiceFabricIdentity(id ManagedIdentity) *IdentityEndpoint {
	e := c.identityEndpoint("Microsoft.ServiceFabric/clusters/applications/app", id)
	certificate := selfSigned()
	at := c.mustListenTLS("service-fabric", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{certificate}},
		e.handler("service-fabric", writeFabric, func(_ http.ResponseWriter, r *http.Request) (ManagedIdentity, url.Values, *refusal) {
			query, secret := r.URL.Query(), r.Header.Get("Secret")
			switch {
			case secret == "":
				return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "SecretHeaderNotFound", "Secret is not found in the request headers."}
			case secret != e.secret:
				return ManagedIdentity{}, nil, &refusal{http.StatusNotFound, "ManagedIdentityNotFound", "Managed identity not found for the specified application host."}
			case query.Get("api-version") != "2019-07-01-preview":
				return ManagedIdentity{}, nil, &refusal{
					http.StatusBadRequest, "InvalidApiVersion", "The api-version '" + query.Get("api-version") + "' is not supported. Supported version is '2019-07-01-preview'.",
				}
			case query.Get("resource") == "":
				return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "ArgumentNullOrEmpty", "The parameter 'resource' should not be null or empty string."}
			}
			return e.all[0], query, nil
		}))
	thumbprint := sha1.Sum(certificate.Certificate[0]) //nolint:gosec // as above
	e.environ = []string{"IDENTITY_ENDPOINT=" + at + "/metadata/identity/oauth2/token", "IDENTITY_HEADER=" + e.secret, fmt.Sprintf("IDENTITY_SERVER_THUMBPRINT=%X", thumbprint)}
	return e
}

func writeFabric(w http.ResponseWriter, r *http.Request, no refusal) {
	entryOf(r).code(no.code)
	writeJSON(w, no.status, map[string]any{"error": map[string]string{"correlationId": newUUID(), "code": no.code, "message": no.message}})
}

// selfSigned is a certificate that nobody vouches for. Its times are the real ones.
func selfSigned() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ServiceFabric"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// arcTokens is where Azure Arc's agent keeps what proves that who asks is somebody on the machine with the right to read it. SDKs take no other place.
const arcTokens = "/var/opt/azcmagent/tokens"

// AzureArc is Azure Arc's on a server elsewhere (https://learn.microsoft.com/azure/azure-arc/servers/managed-identity-authentication). It has to write below /var/opt, which it says in an error if
// it may not.
func (c *Cloud) AzureArc(id ManagedIdentity) (*IdentityEndpoint, error) {
	mark, err := markArc()
	if err != nil {
		return nil, err
	}
	e := c.identityEndpoint("Microsoft.HybridCompute/machines/server-1", id)
	c.atClose(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for _, file := range e.challenges {
			_ = os.Remove(file)
		}
		_ = os.Remove(mark)
		_, _ = os.Remove(arcTokens), os.Remove(filepath.Dir(arcTokens)) // unless somebody else has something there
	})
	at := c.mustListen("azure-arc", e.handler("azure-arc", writeIMDS, e.judgeArc))
	e.environ = []string{"IDENTITY_ENDPOINT=" + at + "/metadata/identity/oauth2/token", "IMDS_ENDPOINT=" + at}
	return e, nil
}

// markArc makes Azure Arc's directory with a file in it. While that is there, no other cloud takes the directory away when it is closed.
func markArc() (file string, err error) {
	for {
		var mark *os.File
		if err = os.MkdirAll(arcTokens, 0o700); err == nil {
			mark, err = os.CreateTemp(arcTokens, "cloud-*")
		}
		switch {
		case err == nil:
			return mark.Name(), mark.Close()
		case !errors.Is(err, fs.ErrNotExist): // which one has just seen to
			return "", fmt.Errorf("making a file in Azure Arc's directory: %w", err)
		}
	}
}

func (e *IdentityEndpoint) judgeArc(w http.ResponseWriter, r *http.Request) (ManagedIdentity, url.Values, *refusal) {
	query := r.URL.Query()
	switch {
	case !strings.EqualFold(r.Header.Get("Metadata"), "true"):
		return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "bad_request_102", "Required metadata header not specified"}
	case query.Get("api-version") < "2019-11-01":
		return ManagedIdentity{}, nil, &refusal{http.StatusBadRequest, "invalid_request", "The api-version is not supported"}
	}
	if shown, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Basic "); !e.meets(shown) {
		file, err := e.challenge()
		if err != nil {
			return ManagedIdentity{}, nil, &refusal{http.StatusInternalServerError, "unknown", err.Error()}
		}
		w.Header().Set("WWW-Authenticate", "Basic realm="+file)
		return ManagedIdentity{}, nil, &refusal{http.StatusUnauthorized, "unauthorized_client", "Missing Basic Authorization header"}
	}
	id, query, no := e.chosen(query, query.Get("object_id"), query.Get("msi_res_id"), "")
	if no != nil {
		no.code = "invalid_request"
	}
	return id, query, no
}

// challenge writes a secret to a file, which holds for one request.
func (e *IdentityEndpoint) challenge() (file string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	secret := random(32) + strconv.Itoa(len(e.challenges))
	e.c.secrets.add(secret)
	file = filepath.Join(arcTokens, newUUID()+".key")
	e.challenges[secret] = file
	if err := os.MkdirAll(arcTokens, 0o700); err != nil { // another process may just have removed it
		return "", err
	}
	return file, os.WriteFile(file, []byte(secret), 0o600)
}

// meets says whether a secret is one that was asked for, and takes it from its file.
func (e *IdentityEndpoint) meets(secret string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	file, ok := e.challenges[secret]
	if ok {
		delete(e.challenges, secret)
		_ = os.Remove(file)
	}
	return ok
}
