package problem

// Document is a problem as it goes over HTTP, as application/problem+json (RFC 9457).
type Document struct {
	Type   string  `json:"type" doc:"URI of the kind of problem"`
	Title  string  `json:"title" doc:"The kind in words"`
	Status int     `json:"status" doc:"HTTP status"`
	Detail string  `json:"detail" doc:"What happened and why"`
	Code   Kind    `json:"code" doc:"The kind, for programs"`
	Why    string  `json:"why,omitempty" doc:"The cause alone"`
	Fix    string  `json:"fix,omitempty" doc:"What you can do"`
	Errors []Field `json:"errors,omitempty" doc:"One per wrong field"`
	// Without it, a client may repeat a request that was refused as unavailable.
	Lasting bool `json:"lasting,omitempty" doc:"Something that the request needs is away: repeating it at once helps nothing"`
}

// typePrefix makes the URI of a kind. It is a name, not an address.
const typePrefix = "urn:nextstack:problem:"

// Document returns p as it goes over HTTP.
func (p *Problem) Document() *Document {
	t := TraitsOf(p.Kind)
	d := &Document{Type: typePrefix + string(p.Kind), Title: t.Title, Status: t.Status, Detail: p.What, Code: p.Kind, Why: p.Why, Fix: p.Fix, Errors: p.Fields, Lasting: p.Lasting}
	if p.Why != "" {
		d.Detail += ": " + p.Why
	}
	return d
}

// Problem is the inverse of Problem.Document.
func (d *Document) Problem() *Problem {
	p := &Problem{Kind: d.Code, What: d.Detail, Why: d.Why, Fix: d.Fix, Fields: d.Errors, Lasting: d.Lasting}
	if n := len(d.Detail) - len(": "+d.Why); d.Why != "" && n >= 0 && d.Detail[n:] == ": "+d.Why {
		p.What = d.Detail[:n]
	}
	return p
}
