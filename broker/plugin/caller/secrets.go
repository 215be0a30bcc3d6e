package caller

import (
	"encoding/json"
	"regexp"
	"strings"

	"github.com/credential-broker/credential-broker/broker/config"
	"github.com/credential-broker/credential-broker/broker/plugin"
)

// secretName matches the names of settings and variables whose values are secret (IDENTITY_HEADER is what Azure's App Service gives a managed identity's token for), and notSecret those that only tell where a secret is, or what about it.
var (
	secretName = regexp.MustCompile(`(?i)passw|passphrase|secret|token|credential|api_?key|access_?key|account_?key|private_?key|identity_header`)
	notSecret  = regexp.MustCompile(`(?i)(file|files|field|path|dir|directory|url|uri|host|name|type|mode|audience|ttl|duration|timeout|endpoint|role|region|provider|helpers?|store|application_credential|token_?proxy)s?$`)
)

// minSecret is the least length in bytes of a value that is kept out of the log: a shorter one occurs in too many words.
const minSecret = 6

// secretsOf are the values in a provider's settings and environment that are secret by their names. The backend may print them, and may end before anybody could tell which of its settings
// it considers secret. Host is the host's environment.
func secretsOf(provider *config.Provider, host []string) []string {
	var found []string
	add := func(name, value string) {
		if len(value) >= minSecret && secretName.MatchString(name) && !notSecret.MatchString(name) {
			found = append(found, value)
		}
	}
	set := make([]string, len(provider.Env))
	for i, v := range provider.Env {
		set[i] = v.Name + "=" + v.Value
	}
	for _, variable := range plugin.Environment(host, provider.InheritEnv, set) {
		name, value, _ := strings.Cut(variable, "=")
		add(name, value)
	}
	var walk func(name string, value any)
	walk = func(name string, value any) {
		switch value := value.(type) {
		case string:
			add(name, value)
		case []any:
			for _, item := range value {
				walk(name, item)
			}
		case map[string]any:
			for field, item := range value {
				walk(field, item)
			}
		}
	}
	var settings any
	if json.Unmarshal(provider.Config, &settings) == nil {
		walk("", settings)
	}
	return found
}
