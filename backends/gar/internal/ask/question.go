package ask

import "time"

// Question is what the backend asks gar-check. It is written to the program's standard input and nowhere else: it has the token in it.
type Question struct {
	// Token is the access token of whoever would pull. (A Secret would be masked on the way.)
	Token string `json:"token"`
	// Proxy is the backend's setting of that name; empty: the environment decides.
	Proxy string `json:"proxy,omitempty"`
	// Endpoint is the URL of the Artifact Registry API, without a path.
	Endpoint string `json:"endpoint"`
	// Project is the ID of the project that the image is in.
	Project string `json:"project"`
	// Location and Repository are where the image is, in Artifact Registry's words.
	Location   string `json:"location"`
	Repository string `json:"repository"`
	// Redirection asks whether the project's gcr.io hosts are served by Artifact Registry.
	Redirection bool `json:"redirection,omitempty"`
	// Within is how long there is to answer.
	Within time.Duration `json:"within"`
}

// Answer is what gar-check prints: what each call said, or why it said nothing.
type Answer struct {
	Permission  Permission  `json:"permission"`
	Repository  Repository  `json:"repository"`
	Redirection Redirection `json:"redirection"`
}

// Permission is what TestIamPermissions said.
type Permission struct {
	// Held: whoever has the token may download from the repository; false, and no failure, of one that does not exist.
	Held    bool     `json:"held,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// Repository is what GetRepository said.
type Repository struct {
	// Format is "DOCKER" where it has container images.
	Format string `json:"format,omitempty"`
	// Mode is "STANDARD_REPOSITORY", "REMOTE_REPOSITORY" or "VIRTUAL_REPOSITORY".
	Mode    string   `json:"mode,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// Redirection is what GetProjectSettings said, if it was asked.
type Redirection struct {
	// State is one of ProjectSettings' legacyRedirectionState.
	State   string   `json:"state,omitempty"`
	Failure *Failure `json:"failure,omitempty"`
}

// Failure is a call that failed. It has nothing of what was answered but codes.
type Failure struct {
	// Status is that of HTTP; 0 if there was no answer.
	Status int `json:"status,omitempty"`
	// Code is the error's, and its reason: see CodeOf.
	Code string `json:"code,omitempty"`
	// Consumer is the project, "projects/123456789", that a request is counted for, where the API says so.
	Consumer string `json:"consumer,omitempty"`
	// Date is the time by the clock of whoever answered.
	Date string `json:"date,omitempty"`
	// Text says why there was no answer, and Untrusted that it is the other side's certificate.
	Text      string `json:"text,omitempty"`
	Untrusted bool   `json:"untrusted,omitempty"`
}
