package vaultserver

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credential-broker/credential-broker/test/cloud"
)

// APIServer stands in for the API server of a cluster: it reviews service accounts' tokens, and nothing else (https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/).
type APIServer struct {
	issuer  *cloud.Issuer
	address string

	mu        sync.Mutex
	delegates map[string]bool   // who may review tokens, by user name
	uids      map[string]string // of the accounts that there are, by user name; an account comes to be when a token is made for it
	deleted   map[string]bool   // uids
	made      int
	reviews   int
}

func (s *Server) startAPIServer(issuer *cloud.Issuer) *APIServer {
	a := &APIServer{issuer: issuer, delegates: map[string]bool{}, uids: map[string]string{}, deleted: map[string]bool{}}
	a.address = s.serveTLS(tls.NoClientCert, a)
	a.Delegate("vault", "reviewer")
	return a
}

// Address is https://127.0.0.1:PORT, with a certificate of the Vault server's CA.
func (a *APIServer) Address() string { return a.address }

// Delegate lets a service account review tokens, its own too, as the cluster role system:auth-delegator does. Vault needs that of each pod's account where it has no token of its own.
func (a *APIServer) Delegate(namespace, serviceAccount string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.delegates[userName(namespace, serviceAccount)] = true
}

// Reviews is how many tokens were reviewed.
func (a *APIServer) Reviews() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.reviews
}

// Token is a new token of a service account, as the kubelet mounts it into a pod: for the API server itself and an hour. claims change it; a nil value leaves one out.
func (a *APIServer) Token(namespace, serviceAccount string, claims map[string]any) string {
	user := userName(namespace, serviceAccount)
	a.mu.Lock()
	uid := a.uids[user]
	if uid == "" {
		a.made++
		uid = fmt.Sprintf("00000000-0000-4000-8000-%012d", a.made)
		a.uids[user] = uid
	}
	a.mu.Unlock()
	all := map[string]any{
		"sub": user, "aud": []string{a.audience()}, "nbf": a.issuer.Now().Unix(),
		"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": serviceAccount, "uid": uid}},
	}
	maps.Copy(all, claims)
	return a.issuer.Token(all)
}

// Delete deletes a service account: its tokens are good no more, also where an account of that name is there again.
func (a *APIServer) Delete(namespace, serviceAccount string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deleted[a.uids[userName(namespace, serviceAccount)]] = true
	delete(a.uids, userName(namespace, serviceAccount))
}

// audience is that of the API server's own tokens, by default the issuer.
func (a *APIServer) audience() string { return a.issuer.URL() }

func userName(namespace, serviceAccount string) string {
	return "system:serviceaccount:" + namespace + ":" + serviceAccount
}

type tokenReview struct {
	Kind       string            `json:"kind"`
	APIVersion string            `json:"apiVersion"`
	Spec       tokenReviewSpec   `json:"spec"`
	Status     tokenReviewStatus `json:"status"`
}

type tokenReviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences,omitempty"`
}

type tokenReviewStatus struct {
	Authenticated bool      `json:"authenticated,omitempty"`
	User          *userInfo `json:"user,omitempty"`
	Audiences     []string  `json:"audiences,omitempty"`
	Error         string    `json:"error,omitempty"`
}

type userInfo struct {
	Username string   `json:"username"`
	UID      string   `json:"uid"`
	Groups   []string `json:"groups"`
}

func (a *APIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/apis/authentication.k8s.io/v1/tokenreviews" {
		refuse(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	if r.Method != http.MethodPost {
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "the server does not allow this method on the requested resource")
		return
	}
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	reviewer, _, err := a.authenticate(bearer, []string{a.audience()})
	if err != nil {
		refuse(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return
	}
	a.mu.Lock()
	may := a.delegates[reviewer.Username]
	a.mu.Unlock()
	if !may {
		refuse(w, http.StatusForbidden, "Forbidden", fmt.Sprintf("tokenreviews.authentication.k8s.io is forbidden: User %q cannot create resource \"tokenreviews\" in API group \"authentication.k8s.io\" at the cluster scope", reviewer.Username))
		return
	}
	var review tokenReview
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyBytes)).Decode(&review); err != nil || review.Kind != "" && review.Kind != "TokenReview" {
		refuse(w, http.StatusBadRequest, "BadRequest", "the object provided is no TokenReview")
		return
	}
	if review.Spec.Token == "" {
		refuse(w, http.StatusUnprocessableEntity, "Invalid", "spec.token: Required value: token is required for authentication")
		return
	}
	a.mu.Lock()
	a.reviews++
	a.mu.Unlock()
	wanted := review.Spec.Audiences
	if len(wanted) == 0 {
		wanted = []string{a.audience()}
	}
	review.Kind, review.APIVersion = "TokenReview", "authentication.k8s.io/v1"
	user, common, err := a.authenticate(review.Spec.Token, wanted)
	if err != nil {
		review.Status = tokenReviewStatus{Error: err.Error()}
	} else {
		review.Status = tokenReviewStatus{Authenticated: true, User: user, Audiences: common}
	}
	writeJSON(w, http.StatusCreated, review)
}

// authenticate judges a service account's token: signature, issuer, times, audiences, and whether the account is still there. It gives whose it is, and those of the audiences that it is for.
func (a *APIServer) authenticate(token string, wanted []string) (*userInfo, []string, error) {
	claims, err := a.issuer.Verify(token)
	if err != nil {
		return nil, nil, fmt.Errorf("[invalid bearer token, %w]", err)
	}
	now := a.issuer.Now()
	number := func(name string) time.Time {
		seconds, _ := claims[name].(float64)
		return time.Unix(int64(seconds), 0)
	}
	private, _ := claims["kubernetes.io"].(map[string]any)
	namespace, _ := private["namespace"].(string)
	account, _ := private["serviceaccount"].(map[string]any)
	name, _ := account["name"].(string)
	uid, _ := account["uid"].(string)
	user := userName(namespace, name)
	var audiences, common []string
	switch aud := claims["aud"].(type) {
	case string:
		audiences = []string{aud}
	case []any:
		for _, one := range aud {
			audiences = append(audiences, fmt.Sprint(one))
		}
	}
	for _, one := range wanted {
		if slices.Contains(audiences, one) {
			common = append(common, one)
		}
	}
	a.mu.Lock()
	deleted := a.deleted[uid] || a.uids[user] != uid
	a.mu.Unlock()
	switch {
	case claims["iss"] != a.issuer.URL():
		return nil, nil, fmt.Errorf("[invalid bearer token, it is of another issuer]")
	case !now.Before(number("exp")):
		return nil, nil, fmt.Errorf("[invalid bearer token, service account token has expired]")
	case now.Before(number("nbf")):
		return nil, nil, fmt.Errorf("[invalid bearer token, service account token is not valid yet]")
	case len(common) == 0:
		return nil, nil, fmt.Errorf("[invalid bearer token, token audiences %q is invalid for the target audiences %q]", audiences, wanted)
	case claims["sub"] != user, name == "", namespace == "":
		return nil, nil, fmt.Errorf("[invalid bearer token, service account token claims are invalid]")
	case deleted:
		return nil, nil, fmt.Errorf("[invalid bearer token, service account %s/%s has been deleted]", namespace, name)
	}
	return &userInfo{Username: user, UID: uid, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}}, common, nil
}

// refuse answers as an API server does (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/).
func refuse(w http.ResponseWriter, status int, reason, message string) {
	writeJSON(w, status, map[string]any{"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "message": message, "reason": reason, "code": status})
}
