package cache

import (
	"strings"
	"time"

	"github.com/credential-broker/credential-broker/broker"
	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/proto/secret"
)

// life is how long an answer is kept.
type life struct {
	obtained time.Time
	// fresh is until when it is answered without a second thought: as long as the kubelet would have kept it.
	fresh time.Time
	// good is until when it is answered while its source is unavailable: the credentials still work.
	good time.Time
}

// hardMargin is how long before its expiry a credential is no longer answered at all.
const hardMargin = 30 * time.Second

// lifeOf says how long an answer holds. False: it is not to be kept, because nobody said for how long, or for no time.
func lifeOf(answer broker.Answer, provider *config.Provider, tokenExpires, obtained time.Time) (life, bool) {
	var fresh, good time.Time
	if d := answer.CacheDuration; d != nil {
		fresh = obtained.Add(*d)
	}
	for _, credential := range answer.Credentials {
		if expires := credential.Expires; !expires.IsZero() {
			fresh = earliest(fresh, expires.Add(-broker.ExpiryMargin(expires.Sub(obtained))))
			good = earliest(good, expires.Add(-hardMargin))
		}
	}
	if fresh.IsZero() && provider.DefaultCacheDuration != nil {
		fresh = obtained.Add(*provider.DefaultCacheDuration)
	}
	if fresh.IsZero() {
		return life{}, false
	}
	fresh = earliest(fresh, tokenExpires)
	if good.IsZero() {
		good = fresh
	}
	good = earliest(good, tokenExpires)
	return life{obtained: obtained, fresh: fresh, good: good}, fresh.After(obtained)
}

// earliest of two times, of which a zero one says nothing.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// countDown makes an answer say of itself what the source would say now, if it were the same answer: that it may be reused for as long as is left.
func countDown(answer broker.Answer, provider *config.Provider, l life, now time.Time) broker.Answer {
	left := func(d time.Duration) *time.Duration { return new(max(d-max(now.Sub(l.obtained), 0), 0)) }
	switch {
	case !now.Before(l.fresh):
		answer.CacheDuration = new(time.Duration(0))
	case answer.CacheDuration != nil:
		answer.CacheDuration = left(*answer.CacheDuration)
	case provider.DefaultCacheDuration != nil && !expires(answer):
		answer.CacheDuration = left(*provider.DefaultCacheDuration)
	}
	return answer
}

func expires(answer broker.Answer) bool {
	for _, credential := range answer.Credentials {
		if !credential.Expires.IsZero() {
			return true
		}
	}
	return false
}

// echoes says that an answer holds the very token that it was asked with.
func echoes(answer broker.Answer, token secret.Secret) bool {
	if token == "" {
		return false
	}
	for _, credential := range answer.Credentials {
		if strings.Contains(string(credential.Password), string(token)) || strings.Contains(credential.Username, string(token)) {
			return true
		}
	}
	return false
}

// stored is an answer whose secrets are sealed.
type stored struct {
	credentials  []broker.Credential // without user names and passwords
	registryWide bool
	duration     *time.Duration
	secrets      *sealed // user name and password of each credential, then the lease, then the token
}

func store(answer broker.Answer, token secret.Secret) stored {
	s := stored{registryWide: answer.RegistryWide, duration: answer.CacheDuration}
	secrets := make([]secret.Secret, 0, 2*len(answer.Credentials)+2)
	for _, credential := range answer.Credentials {
		s.credentials = append(s.credentials, broker.Credential{Key: strings.Clone(credential.Key), Expires: credential.Expires})
		secrets = append(secrets, secret.Secret(credential.Username), credential.Password)
	}
	s.secrets = seal(append(secrets, answer.Lease, token)...)
	return s
}

// answer builds the answer anew, without its lease. False: it has been wiped.
func (s *stored) answer() (broker.Answer, bool) {
	answer := broker.Answer{RegistryWide: s.registryWide, CacheDuration: s.duration}
	for i, credential := range s.credentials {
		username, ok := s.secrets.open(2 * i)
		password, still := s.secrets.open(2*i + 1)
		if !ok || !still {
			return broker.Answer{}, false
		}
		credential.Username, credential.Password = string(username), password
		answer.Credentials = append(answer.Credentials, credential)
	}
	return answer, true
}

// lease is empty where the source gave none, or all has been wiped.
func (s *stored) lease() secret.Secret { return s.secret(2 * len(s.credentials)) }

// token is the one to renew with: empty where none is needed or worth keeping.
func (s *stored) token() secret.Secret { return s.secret(2*len(s.credentials) + 1) }

func (s *stored) secret(index int) secret.Secret {
	value, _ := s.secrets.open(index)
	return value
}

// setToken puts another token in the place of the one to renew with.
func (s *stored) setToken(token secret.Secret) {
	answer, ok := s.answer()
	if !ok {
		return
	}
	answer.Lease = s.lease()
	replaced := s.secrets
	*s = store(answer, token)
	replaced.wipe()
}

// size is an estimate of what it takes of memory, in bytes.
func (s *stored) size() int {
	size := s.secrets.size()
	for _, credential := range s.credentials {
		size += len(credential.Key) + credentialSize
	}
	return size
}

const credentialSize = 80 // a broker.Credential, in bytes
