// Package problem is the one table of error kinds. Every error that crosses a room of the house — a driver's, a step's,
// a handler's — is a *Problem, so that HTTP status, CLI exit code and retryability are decided in one place.
package problem

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Kind says what sort of failure it is. The zero value is never valid.
type Kind string

// The kinds. A new one needs a row in the table below and nothing else.
const (
	Invalid         Kind = "invalid"         // the request can never succeed as it is
	Unauthenticated Kind = "unauthenticated" // no valid token
	Forbidden       Kind = "forbidden"       // the token does not allow it
	NotFound        Kind = "not_found"       // the thing does not exist
	Conflict        Kind = "conflict"        // the name, address or state is in the way
	Locked          Kind = "locked"          // another operation works on it
	InUse           Kind = "in_use"          // something else still needs it
	Precondition    Kind = "precondition"    // If-Match does not hold
	Mismatch        Kind = "mismatch"        // the Idempotency-Key was used with another body
	TooLarge        Kind = "too_large"       // the body is over the limit
	Quota           Kind = "quota"           // the project's quota is used up
	NoCapacity      Kind = "no_capacity"     // no node, pool or subnet has room
	Unavailable     Kind = "unavailable"     // a part is away for now; trying again may help
	Timeout         Kind = "timeout"         // it took too long; nobody knows whether it happened
	Unsupported     Kind = "unsupported"     // this node, pool or format cannot do it
	Cancelled       Kind = "cancelled"       // somebody asked to stop
	Stale           Kind = "stale"           // a late attempt of a step that has been overtaken
	Internal        Kind = "internal"        // a bug of ours
)

// Traits is what follows from a kind.
type Traits struct {
	Status int    // HTTP status
	Exit   int    // exit code of gnext
	Retry  bool   // a step that fails with it is tried again
	Title  string // what people read first
}

var table = map[Kind]Traits{
	Invalid:         {422, 2, false, "The request is not valid"},
	Unauthenticated: {401, 3, false, "Authentication needed"},
	Forbidden:       {403, 3, false, "Not allowed"},
	NotFound:        {404, 4, false, "Not found"},
	Conflict:        {409, 5, false, "Conflict"},
	Locked:          {409, 5, false, "Another operation is working on it"},
	InUse:           {409, 5, false, "Still in use"},
	Precondition:    {412, 5, false, "It has changed since it was read"},
	Mismatch:        {422, 5, false, "Idempotency-Key used before with another request"},
	TooLarge:        {413, 2, false, "Too large"},
	Quota:           {403, 6, false, "Quota exceeded"},
	NoCapacity:      {507, 6, false, "No capacity"},
	Unavailable:     {503, 7, true, "Unavailable"},
	Timeout:         {504, 7, true, "Timed out"},
	Unsupported:     {501, 8, false, "Not supported"},
	Cancelled:       {409, 9, false, "Cancelled"},
	Stale:           {409, 5, false, "Overtaken by a newer attempt"},
	Internal:        {500, 1, true, "Internal error"},
}

// TraitsOf returns what follows from k; an unknown kind counts as Internal.
func TraitsOf(k Kind) Traits {
	if t, ok := table[k]; ok {
		return t
	}
	return table[Internal]
}

// Kinds returns every kind, for documentation and tests.
func Kinds() []Kind {
	out := make([]Kind, 0, len(table))
	for k := range table {
		out = append(out, k)
	}
	return out
}

// Problem is an error that tells what happened, why, and what to do about it.
type Problem struct {
	Kind   Kind    `json:"kind"`
	What   string  `json:"what"`             // what went wrong, with names and values
	Why    string  `json:"why,omitempty"`    // the cause, if it is known and not obvious
	Fix    string  `json:"fix,omitempty"`    // what the reader can do
	Fields []Field `json:"fields,omitempty"` // one per wrong field of a request
	// Lasting: it is about something that is away, and not about who answers, so that asking again at once helps nothing.
	Lasting bool `json:"lasting,omitempty"`

	cause error
}

// Field names one wrong field of a request.
type Field struct {
	Path    string `json:"path"` // e.g. spec.memory
	Message string `json:"message"`
	Value   any    `json:"value,omitempty"`
}

// Error implements error: what, why and fix in one line.
func (p *Problem) Error() string {
	s := p.What
	if p.Why != "" {
		s += ": " + p.Why
	}
	for _, f := range p.Fields {
		s += fmt.Sprintf("; %s: %s", f.Path, f.Message)
	}
	if p.Fix != "" {
		s += " (" + p.Fix + ")"
	}
	return s
}

// Unwrap returns the error this one was made from, if any.
func (p *Problem) Unwrap() error { return p.cause }

// New makes a problem of kind k; format and args say what happened.
func New(k Kind, format string, args ...any) *Problem {
	return &Problem{Kind: k, What: fmt.Sprintf(format, args...)}
}

// Because adds the cause in words. It returns p.
func (p *Problem) Because(format string, args ...any) *Problem {
	p.Why = fmt.Sprintf(format, args...)
	return p
}

// Try adds what the reader can do. It returns p.
func (p *Problem) Try(format string, args ...any) *Problem {
	p.Fix = fmt.Sprintf(format, args...)
	return p
}

// Away makes p say that something other than who answers is unavailable: see Lasting. It returns p.
func (p *Problem) Away() *Problem {
	p.Kind, p.Lasting = Unavailable, true
	return p
}

// Wrap makes a problem of kind k out of err; its text becomes the why. A nil err gives nil, and an err that already is a
// Problem keeps its own kind.
func Wrap(err error, k Kind, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return Caused(err, k, format, args...)
}

// Caused is Wrap for an err that is known not to be nil; Try can complete it.
func Caused(err error, k Kind, format string, args ...any) *Problem {
	p := New(k, format, args...)
	p.cause, p.Why = err, err.Error()
	var inner *Problem
	if errors.As(err, &inner) {
		p.Kind, p.Fix, p.Fields = inner.Kind, inner.Fix, inner.Fields
		p.Why = inner.What
		if inner.Why != "" {
			p.Why += ": " + inner.Why
		}
	}
	return p
}

// From returns err as a Problem; anything that is not one becomes Internal. From(nil) is nil.
func From(err error) *Problem {
	if err == nil {
		return nil
	}
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return &Problem{Kind: Internal, What: err.Error(), cause: err}
}

// Is reports whether err is a Problem of kind k.
func Is(err error, k Kind) bool {
	var p *Problem
	return errors.As(err, &p) && p.Kind == k
}

// KindOf returns the kind of err, or "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	return From(err).Kind
}

// Validation collects the wrong fields of a request, so that a user sees all of them at once.
type Validation struct{ fields []Field }

// Add records that the field at path is wrong.
func (v *Validation) Add(path string, value any, format string, args ...any) {
	v.fields = append(v.fields, Field{Path: path, Message: fmt.Sprintf(format, args...), Value: value})
}

// Check records the message unless ok.
func (v *Validation) Check(ok bool, path string, value any, format string, args ...any) {
	if !ok {
		v.Add(path, value, format, args...)
	}
}

// Err returns an Invalid problem that lists the fields, or nil if all was well.
func (v *Validation) Err(what string) error {
	if len(v.fields) == 0 {
		return nil
	}
	return &Problem{Kind: Invalid, What: what + " is not valid", Fields: v.fields, Fix: "correct the listed fields and send it again"}
}

// Marshal encodes p as JSON, for carrying it through a workflow engine or a file.
func Marshal(p *Problem) string {
	b, err := json.Marshal(p)
	if err != nil {
		return `{"kind":"internal","what":"a problem could not be encoded"}`
	}
	return string(b)
}
