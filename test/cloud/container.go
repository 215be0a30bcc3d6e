package cloud

import (
	"cmp"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Container is a credentials endpoint on loopback, as ECS and the EKS Pod Identity agent have it
// (https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html).
type Container struct {
	c    *Cloud
	url  string
	file string
	role string

	mu    sync.Mutex
	token string
	keys  *accessKey
}

// Container starts a credentials endpoint that hands out the role's credentials.
func (c *Cloud) Container(roleARN string) *Container {
	k := &Container{c: c, role: roleARN, file: filepath.Join(c.dir, "container-"+random(8))}
	k.url = c.mustListen("container", http.HandlerFunc(k.serve))
	k.Rotate()
	return k
}

// Environ points the SDKs to it, with the authorization token in a file (EKS Pod Identity).
func (k *Container) Environ() []string {
	return []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + k.URL(), "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=" + k.file}
}

// EnvironToken is Environ with the token itself in the environment (ECS), which Rotate does not change.
func (k *Container) EnvironToken() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return []string{"AWS_CONTAINER_CREDENTIALS_FULL_URI=" + k.URL(), "AWS_CONTAINER_AUTHORIZATION_TOKEN=" + k.token}
}

// URL is the address of the credentials.
func (k *Container) URL() string { return k.url + "/v1/credentials" }

// TokenFile is the path of the file with the authorization token.
func (k *Container) TokenFile() string { return k.file }

// Rotate puts a new token into the file and refuses the one before.
func (k *Container) Rotate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.token = random(64)
	if err := os.WriteFile(k.file, []byte(k.token), 0o600); err != nil {
		panic(err)
	}
}

func (k *Container) serve(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, code string) {
		entryOf(r).code(code)
		writeJSON(w, status, map[string]string{"code": code, "message": http.StatusText(status)})
	}
	if k.c.faulty(w, r, "container", entryOf(r).name(), func(f Fault) {
		refuse(cmp.Or(f.Status, http.StatusInternalServerError), cmp.Or(f.Code, "InternalServerException"))
	}) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case r.URL.Path != "/v1/credentials" || r.Method != http.MethodGet:
		refuse(http.StatusNotFound, "ResourceNotFoundException")
		return
	case r.Header.Get("Authorization") != k.token:
		refuse(http.StatusUnauthorized, "AccessDeniedException")
		return
	}
	if k.keys == nil || k.keys.expires.Sub(k.c.Now()) < instanceSession-time.Hour {
		k.keys = k.c.session(k.role, "eks-cluster-pod-"+random(8), instanceSession, nil, nil)
	}
	entryOf(r).principal(k.keys.arn)
	writeJSON(w, http.StatusOK, map[string]string{
		"AccessKeyId": k.keys.AccessKeyID, "SecretAccessKey": k.keys.SecretAccessKey, "Token": k.keys.SessionToken,
		"Expiration": k.keys.expires.UTC().Format(time.RFC3339), "AccountId": k.keys.account(),
	})
}
