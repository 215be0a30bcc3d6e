package vaultserver

import (
	"crypto/subtle"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"
)

// The administrator of RabbitMQ that Vault is.
const (
	rabbitAdmin    = "vault"
	rabbitPassword = "the administrator's own password"
)

// RabbitMQ is Vault's engine of that name before a stand-in for RabbitMQ's management API: mount/creds/ROLE answers with a new user and its password, and a lease; when the lease ends, the user is deleted.
type RabbitMQ struct {
	s     *Server
	mount string

	mu    sync.Mutex
	users map[string]string
}

// RabbitMQ enables the engine at a mount.
func (s *Server) RabbitMQ(mount string) *RabbitMQ {
	r := &RabbitMQ{s: s, mount: mount, users: map[string]string{}}
	address := s.servePlain(r)
	s.must(s.client.Sys().Mount(mount, &api.MountInput{Type: "rabbitmq"}))
	s.must(s.write(mount+"/config/connection", map[string]any{"connection_uri": address, "username": rabbitAdmin, "password": rabbitPassword}, nil))
	return r
}

// Role makes a role, for creds/NAME. settings are the role's own (https://developer.hashicorp.com/vault/api-docs/secret/rabbitmq); nil: a user who may read everything.
func (r *RabbitMQ) Role(name string, settings map[string]any) {
	r.s.must(r.s.write(r.mount+"/roles/"+name, map[string]any{"vhosts": `{"/":{"configure":"","write":"","read":".*"}}`}, settings))
}

// Lease says how long leases are that are made or renewed from now on, and how long they may become. Both are whole seconds, and 0 is Vault's own default.
func (r *RabbitMQ) Lease(ttl, longest time.Duration) {
	r.s.must(r.s.write(r.mount+"/config/lease", map[string]any{"ttl": int(ttl.Seconds()), "max_ttl": int(longest.Seconds())}, nil))
}

// Users are those who can log in to RabbitMQ now: name to password. Vault itself is not among them.
func (r *RabbitMQ) Users() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.users)
}

// ServeHTTP is the part of the management API that the engine needs (https://www.rabbitmq.com/docs/http-api-reference).
func (r *RabbitMQ) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	name, password, _ := q.BasicAuth()
	if subtle.ConstantTimeCompare([]byte(name), []byte(rabbitAdmin))&subtle.ConstantTimeCompare([]byte(password), []byte(rabbitPassword)) == 0 {
		rabbitError(w, http.StatusUnauthorized, "not_authorized", "Login failed")
		return
	}
	parts := strings.Split(strings.Trim(q.URL.EscapedPath(), "/"), "/")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(parts) == 2 && parts[1] == "users" && q.Method == http.MethodGet:
		writeJSON(w, http.StatusOK, []map[string]any{{"name": rabbitAdmin, "tags": []string{"administrator"}}})
	case len(parts) == 3 && parts[1] == "users" && q.Method == http.MethodPut:
		var user struct{ Password string }
		if err := json.NewDecoder(io.LimitReader(q.Body, bodyBytes)).Decode(&user); err != nil || user.Password == "" {
			rabbitError(w, http.StatusBadRequest, "bad_request", "a user needs a password")
			return
		}
		r.users[parts[2]] = user.Password
		w.WriteHeader(http.StatusCreated)
	case len(parts) == 3 && parts[1] == "users" && q.Method == http.MethodDelete:
		if _, ok := r.users[parts[2]]; !ok {
			rabbitError(w, http.StatusNotFound, "Object Not Found", "Not Found")
			return
		}
		delete(r.users, parts[2])
		w.WriteHeader(http.StatusNoContent)
	case len(parts) == 4 && (parts[1] == "permissions" || parts[1] == "topic-permissions") && q.Method == http.MethodPut:
		if _, ok := r.users[parts[3]]; !ok {
			rabbitError(w, http.StatusBadRequest, "bad_request", "no_such_user")
			return
		}
		w.WriteHeader(http.StatusCreated)
	default:
		rabbitError(w, http.StatusNotFound, "Object Not Found", "Not Found")
	}
}

func rabbitError(w http.ResponseWriter, status int, code, reason string) {
	writeJSON(w, status, map[string]string{"error": code, "reason": reason})
}
