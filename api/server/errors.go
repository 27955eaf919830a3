package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/nextstack/nextstack/api/problem"
)

// problemType is the content type of an error.
const problemType = "application/problem+json"

// problemDocument is a problem.Document as the HTTP framework wants an error to be.
type problemDocument struct{ problem.Document }

// Error implements huma.StatusError.
func (d *problemDocument) Error() string { return d.Detail }

// GetStatus implements huma.StatusError.
func (d *problemDocument) GetStatus() int { return d.Status }

// ContentType implements huma.ContentTypeFilter.
func (d *problemDocument) ContentType(string) string { return problemType }

// The framework knows one way to make errors, and it is global. Nobody else uses it: the framework lives in this room alone.
func init() {
	huma.ValidateStrictCasing = true
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return frameworkError(status, msg, errs)
	}
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if ctx != nil {
			if info := infoOf(ctx.Context()); info != nil && len(errs) > 0 {
				info.cause = errors.Join(errs...)
				if p := problem.From(errs[0]); p.Unwrap() != nil {
					info.cause = p.Unwrap()
				}
			}
		}
		return frameworkError(status, msg, errs)
	}
}

func frameworkError(status int, msg string, errs []error) *problemDocument {
	for _, err := range errs {
		var p *problem.Problem
		if errors.As(err, &p) {
			return &problemDocument{*short(p.Document())}
		}
	}
	var p *problem.Problem
	switch {
	case status == http.StatusRequestEntityTooLarge:
		p = problem.New(problem.TooLarge, "the request body is too large").Because("at most %d bytes are read", maxBody).Try("send less")
	case status == http.StatusUnsupportedMediaType:
		p = problem.New(problem.Invalid, "the content type of the request is not known").Try("send JSON, with Content-Type: application/json")
	case status == http.StatusRequestTimeout:
		p = problem.New(problem.Invalid, "the request body did not arrive in time").Try("send it again")
	case status == http.StatusNotAcceptable:
		p = problem.New(problem.Invalid, "no answer can be given in a format that the Accept header names").Try("accept application/json")
	case status >= http.StatusInternalServerError:
		// What went wrong is in the log, with the request's ID. It could be anything, so it is not shown.
		p = problem.New(problem.Internal, "something unexpected happened").Try("look into the server's log for the X-Request-Id of this answer")
	case status == 0 || status < http.StatusBadRequest:
		p = problem.New(problem.Internal, "%s", msg)
	default:
		p = problem.New(problem.Invalid, "the request is not valid").Try("correct the listed fields and send it again")
		p.Fields = fieldsOf(errs)
		if len(p.Fields) == 0 {
			p.Why = msg
		}
	}
	return &problemDocument{*p.Document()}
}

// fieldsOf translates the framework's list of wrong fields into ours.
func fieldsOf(errs []error) []problem.Field {
	var out []problem.Field
	for _, err := range errs {
		var d huma.ErrorDetailer
		if !errors.As(err, &d) {
			out = append(out, problem.Field{Message: err.Error()})
			continue
		}
		detail := d.ErrorDetail()
		path := strings.TrimPrefix(detail.Location, "body.")
		f := problem.Field{Path: path, Message: detail.Message}
		if showable(path, detail.Value) {
			f.Value = detail.Value
		}
		out = append(out, f)
	}
	return out
}

// showable keeps whole bodies and secrets out of error messages, which are copied into tickets and logs.
func showable(path string, value any) bool {
	path = strings.ToLower(path)
	for _, secret := range []string{"password", "token", "userdata"} {
		if strings.Contains(path, secret) {
			return false
		}
	}
	switch v := value.(type) {
	case string:
		return path != "body" && len(v) <= 200
	case bool, float64, int, int64:
		return true
	default:
		return false
	}
}

// hidden makes a problem of err whose cause is logged and not shown: it has paths of the server in it.
func hidden(err error, kind problem.Kind, fix, format string, args ...any) error {
	p := problem.From(problem.Wrap(err, kind, format, args...)).Try("%s", fix)
	p.Why = ""
	return p
}

// short cuts what a request made long: an error message should not be as large as the mistake.
func short(d *problem.Document) *problem.Document {
	d.Detail, d.Why = clip(d.Detail), clip(d.Why)
	d.Errors = slices.Clone(d.Errors)
	for i := range d.Errors {
		f := &d.Errors[i]
		f.Path, f.Message = clip(f.Path), clip(f.Message)
		if text, ok := f.Value.(string); ok {
			f.Value = clip(text)
		}
	}
	return d
}

// clip cuts a text that is far longer than anything written for people.
func clip(s string) string {
	const most = 600
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// writeProblem writes err as the answer to a request that never reached the framework.
func writeProblem(w http.ResponseWriter, err error) {
	writeDocument(w, problem.From(err).Document())
}

func writeDocument(w http.ResponseWriter, d *problem.Document) {
	w.Header().Set("Content-Type", problemType)
	if d.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(d.Status)
	_ = json.NewEncoder(w).Encode(d) // the client is gone, if this fails
}
