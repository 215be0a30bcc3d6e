package webidentity

// Fields are what a backend calls the settings of a source that it does not have in a Config, for errors.
type Fields struct {
	// Source is where the source's own are, such as "auth.gcp".
	Source string
	// Audience is the one that says the audience.
	Audience string
	// Elsewhere is what to do on a machine that is not in the source's cloud.
	Elsewhere string
}

func (f Fields) judge(audience string, w world) judge {
	return judge{audience: audience, field: f.Source, setting: f.Audience, elsewhere: f.Elsewhere, now: w.now}
}

// NewFile makes that source alone; like the next ones, it neither reads nor connects. Its file is the setting "tokenFile".
func NewFile(c File, audience string, f Fields) Source {
	j := f.judge(audience, realWorld())
	j.field += ".tokenFile"
	return &file{File: c, judge: j}
}

// NewGoogleMetadata makes that source alone.
func NewGoogleMetadata(c GoogleMetadata, audience string, f Fields) Source {
	w := realWorld()
	return newGoogle(c, f.judge(audience, w), w)
}

// NewAzureManagedIdentity makes that source alone.
func NewAzureManagedIdentity(c AzureManagedIdentity, audience string, f Fields) Source {
	w := realWorld()
	return newAzure(c, f.judge(audience, w), w)
}
