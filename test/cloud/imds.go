package cloud

import (
	"cmp"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Instance is an EC2 instance's metadata service, version 2 (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html).
type Instance struct {
	c  *Cloud
	id string

	mu       sync.Mutex
	url      string
	region   string
	role     string
	v1       bool
	hops     bool
	disabled bool
	delay    time.Duration
	tokens   map[string]time.Time // and when they expire
	keys     *accessKey
}

// Instance starts a metadata service; an empty role: an instance without one.
func (c *Cloud) Instance(roleARN string) *Instance {
	i := &Instance{c: c, id: "i-0" + strings.ToLower(random(16)), role: roleARN, region: "us-east-1", tokens: map[string]time.Time{}}
	i.url = c.mustListen("imds", http.HandlerFunc(i.serve))
	return i
}

// Environ points the SDKs to it and enables it; it goes after the cloud's own Environ, and after a call of Absent or Refuse.
func (i *Instance) Environ() []string {
	return []string{"AWS_EC2_METADATA_DISABLED=false", "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + i.URL()}
}

// URL is its address, without a slash at its end.
func (i *Instance) URL() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.url
}

func (i *Instance) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// ID is the instance's, which is the name of its role's sessions.
func (i *Instance) ID() string { return i.id }

// AllowV1 lets it answer requests without a token (HttpTokens=optional).
func (i *Instance) AllowV1() { i.set(func() { i.v1 = true }) }

// Disable lets it refuse everything, as with HttpEndpoint=disabled.
func (i *Instance) Disable() { i.set(func() { i.disabled = true }) }

// SetRegion changes where the instance is; us-east-1 without.
func (i *Instance) SetRegion(region string) { i.set(func() { i.region = region }) }

// ExceedHopLimit lets no answer to a request for a token arrive, as in a container behind a hop limit of 1.
func (i *Instance) ExceedHopLimit() { i.set(func() { i.hops = true }) }

// Slow delays each answer by d of real time.
func (i *Instance) Slow(d time.Duration) { i.set(func() { i.delay = d }) }

// Absent makes it as on a machine outside AWS: nobody answers. On Linux not even a connection is made.
func (i *Instance) Absent() {
	url := i.c.unreachable()
	i.set(func() { i.url = url })
}

// Refuse makes it as on a machine outside AWS whose network says so: connections are refused.
func (i *Instance) Refuse() {
	url := i.c.refusing()
	i.set(func() { i.url = url })
}

const (
	imdsToken = "X-Aws-Ec2-Metadata-Token"
	imdsTTL   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

func (i *Instance) serve(w http.ResponseWriter, r *http.Request) {
	fault := func(f Fault) {
		entryOf(r).code(f.Code)
		http.Error(w, f.Code, cmp.Or(f.Status, http.StatusServiceUnavailable))
	}
	if i.c.faulty(w, r, "imds", entryOf(r).name(), fault) {
		return
	}
	i.mu.Lock()
	delay, hops := i.delay, i.hops
	i.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	if hops && r.Method == http.MethodPut {
		i.c.hang(r)
		panic(http.ErrAbortHandler)
	}
	i.mu.Lock()
	status, body := i.answer(w, r)
	i.mu.Unlock()
	if status != http.StatusOK {
		http.Error(w, http.StatusText(status), status)
		return
	}
	_, _ = w.Write([]byte(body))
}

// answer is called with the lock held.
func (i *Instance) answer(w http.ResponseWriter, r *http.Request) (status int, body string) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Server", "EC2ws")
	switch {
	case i.disabled:
		return http.StatusForbidden, ""
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		return i.token(w, r)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		return http.StatusMethodNotAllowed, ""
	}
	if token := r.Header.Get(imdsToken); token != "" || !i.v1 {
		expires, ok := i.tokens[token]
		if !ok || !i.c.Now().Before(expires) {
			return http.StatusUnauthorized, ""
		}
		w.Header().Set(imdsTTL, strconv.Itoa(int(expires.Sub(i.c.Now()).Seconds())))
	}
	return i.metadata(w, r)
}

// token gives a session token. A request that was forwarded is refused: a proxy that is open to strangers must not get them one.
func (i *Instance) token(w http.ResponseWriter, r *http.Request) (status int, body string) {
	seconds, err := strconv.Atoi(r.Header.Get(imdsTTL))
	switch {
	case r.Header.Get("X-Forwarded-For") != "":
		return http.StatusForbidden, ""
	case err != nil || seconds < 1 || seconds > 21600:
		return http.StatusBadRequest, ""
	}
	token := "AQAEA" + random(51)
	i.tokens[token] = i.c.Now().Add(time.Duration(seconds) * time.Second)
	w.Header().Set(imdsTTL, strconv.Itoa(seconds))
	return http.StatusOK, token
}

// metadata answers for the paths that SDKs ask for.
func (i *Instance) metadata(w http.ResponseWriter, r *http.Request) (status int, body string) {
	a, _ := parseARN(i.role)
	name := path.Base(a.resource)
	const credentials = "/latest/meta-data/iam/security-credentials/"
	p := partitionOf(i.region)
	pages := map[string]string{
		"/latest/meta-data/instance-id":                 i.id,
		"/latest/meta-data/placement/region":            i.region,
		"/latest/meta-data/placement/availability-zone": i.region + "a",
		"/latest/meta-data/services/domain":             p.suffix,
		"/latest/meta-data/services/partition":          p.name,
	}
	account := cmp.Or(a.account, "123456789012")
	switch at := r.URL.Path; {
	case at == "/latest/dynamic/instance-identity/document":
		return http.StatusOK, fmt.Sprintf(`{"accountId":%q,"architecture":"x86_64","availabilityZone":%q,"instanceId":%q,"region":%q,"version":"2017-09-30"}`, account, i.region+"a", i.id, i.region)
	case pages[at] != "":
		return http.StatusOK, pages[at]
	case i.role == "":
		return http.StatusNotFound, ""
	case at == "/latest/meta-data/iam/info":
		w.Header().Set("Content-Type", "application/json")
		return http.StatusOK, fmt.Sprintf(`{"Code":"Success","LastUpdated":%q,"InstanceProfileArn":"arn:%s:iam::%s:instance-profile/%s","InstanceProfileId":"AIPA0000000000000000"}`,
			i.c.Now().UTC().Format(time.RFC3339), a.partition, a.account, name)
	case slices.Contains([]string{credentials, strings.TrimSuffix(credentials, "/")}, at):
		return http.StatusOK, name
	case at == credentials+name:
		k := i.credentials()
		entryOf(r).principal(k.arn)
		w.Header().Set("Content-Type", "application/json")
		return http.StatusOK, fmt.Sprintf(`{"Code":"Success","LastUpdated":%q,"Type":"AWS-HMAC","AccessKeyId":%q,"SecretAccessKey":%q,"Token":%q,"Expiration":%q}`,
			k.expires.Add(-instanceSession).UTC().Format(time.RFC3339), k.AccessKeyID, k.SecretAccessKey, k.SessionToken, k.expires.UTC().Format(time.RFC3339))
	}
	return http.StatusNotFound, ""
}

// instanceSession is how long an instance's session lasts.
const instanceSession = 6 * time.Hour

// credentials are the role's: the same ones until they are an hour old.
func (i *Instance) credentials() *accessKey {
	if i.keys == nil || i.keys.expires.Sub(i.c.Now()) < instanceSession-time.Hour {
		i.keys = i.c.session(i.role, i.id, instanceSession, nil, nil)
	}
	return i.keys
}
