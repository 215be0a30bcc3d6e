// Package ask is what the backend and its program gar-check have in common: how a call that failed is told without repeating what was answered, and what the one asks the other. It knows no API.
package ask

import (
	"encoding/json"
	"strings"
)

// CodeOf is the error code in an answer, in the form of RFC 6749 or in that of Google's APIs (https://google.aip.dev/193); empty if there is none, or if it could be something else.
func CodeOf(body []byte) string {
	var answer struct {
		Error json.RawMessage `json:"error"`
	}
	var code string
	var status struct {
		Status  string `json:"status"`
		Details []struct {
			Reason string `json:"reason"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &answer) != nil || json.Unmarshal(answer.Error, &code) != nil && json.Unmarshal(answer.Error, &status) != nil {
		return ""
	}
	if code == "" {
		code = status.Status
		for _, detail := range status.Details {
			if detail.Reason != "" {
				code += " " + detail.Reason
				break
			}
		}
	}
	if len(code) > 100 || strings.ContainsFunc(code, func(r rune) bool { return r != '_' && r != ' ' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }) {
		return ""
	}
	return code
}
