package cloud

import (
	"cmp"
	"net/http"
	"path"
	"time"
)

// ssoSession is what an access token of IAM Identity Center opens.
type ssoSession struct {
	role    string
	region  string
	expires time.Time
}

// SSO gives an access token of IAM Identity Center, as a login leaves it in the SDKs' cache, that opens one role for eight hours
// (https://docs.aws.amazon.com/singlesignon/latest/PortalAPIReference/API_GetRoleCredentials.html).
func (c *Cloud) SSO(region, roleARN string) (accessToken string) {
	expires := c.Now().Add(8 * time.Hour)
	c.mu.Lock()
	defer c.mu.Unlock()
	accessToken = random(100)
	c.aws.sso[accessToken] = ssoSession{roleARN, region, expires}
	return accessToken
}

// ssoAPI is the portal at an endpoint.
func (c *Cloud) ssoAPI(e endpoint) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		refuse := func(status int, code, message string) {
			entryOf(r).code(code)
			w.Header().Set("X-Amzn-Errortype", code)
			writeJSON(w, status, map[string]string{"message": message})
		}
		entryOf(r).operation("GetRoleCredentials")
		if c.faulty(w, r, "sso", "GetRoleCredentials", func(f Fault) {
			refuse(cmp.Or(f.Status, http.StatusTooManyRequests), cmp.Or(f.Code, "TooManyRequestsException"), "a fault on demand")
		}) {
			return
		}
		now := c.Now()
		c.mu.Lock()
		s, ok := c.aws.sso[r.Header.Get("X-Amz-Sso_bearer_token")]
		c.mu.Unlock()
		a, _ := parseARN(s.role)
		query := r.URL.Query()
		switch {
		case r.URL.Path != "/federation/credentials" || r.Method != http.MethodGet:
			refuse(http.StatusNotFound, "ResourceNotFoundException", "there is no such page")
		case !ok || s.region != e.region || !now.Before(s.expires):
			refuse(http.StatusUnauthorized, "UnauthorizedException", "Session token not found or invalid")
		case query.Get("account_id") != a.account || query.Get("role_name") != path.Base(a.resource):
			refuse(http.StatusForbidden, "ForbiddenException", "No access")
		default:
			k := c.session(s.role, "somebody@example.com", time.Hour, nil, nil)
			entryOf(r).principal(k.arn)
			writeJSON(w, http.StatusOK, map[string]any{"roleCredentials": map[string]any{
				"accessKeyId": k.AccessKeyID, "secretAccessKey": k.SecretAccessKey, "sessionToken": k.SessionToken, "expiration": k.expires.UnixMilli(),
			}})
		}
	})
}
