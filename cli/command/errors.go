package command

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// printProblem writes p to stderr: in words, or as the problem document for programs.
func (a *app) printProblem(p *problem.Problem) {
	if p.Kind == problem.Unauthenticated && p.Fix == "" {
		p.Fix = "run `gnext login`, or set GNEXT_TOKEN"
	}
	if a.output == formatJSON {
		enc := json.NewEncoder(a.Stderr)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if enc.Encode(p.Document()) == nil {
			return
		}
	}
	var b strings.Builder
	b.WriteString("Error: " + p.What + "\n")
	writeReasons(&b, "  ", p)
	fmt.Fprint(a.Stderr, b.String())
}

// writeReasons writes why, the wrong fields and the fix, each on lines of its own.
func writeReasons(b *strings.Builder, indent string, p *problem.Problem) {
	if p.Why != "" {
		fmt.Fprintf(b, "%swhy: %s\n", indent, p.Why)
	}
	for _, f := range p.Fields {
		fmt.Fprintf(b, "%s- %s: %s", indent, f.Path, f.Message)
		if v := fieldValue(f.Value); v != "" {
			fmt.Fprintf(b, " (it is %s)", v)
		}
		b.WriteByte('\n')
	}
	if p.Fix != "" {
		fmt.Fprintf(b, "%sfix: %s\n", indent, p.Fix)
	}
}

// fieldValue shows the value of a wrong field, unless it says nothing or too much.
func fieldValue(v any) string {
	if v == nil || v == "" {
		return ""
	}
	b, err := json.Marshal(v)
	if err != nil || len(b) > 80 {
		return ""
	}
	return string(b)
}

// failure is the problem of an operation that has ended without success.
func failure(op *api.Operation) *problem.Problem {
	p := &problem.Problem{Kind: problem.Internal}
	if op.State == api.OpCancelled {
		p.Kind = problem.Cancelled
	}
	if op.Error != nil {
		inner := *op.Error
		p.Kind, p.Fields, p.Fix = inner.Kind, inner.Fields, inner.Fix
		if p.Why = inner.What; inner.Why != "" {
			p.Why += ": " + inner.Why
		}
	}
	undone := "what it had done is undone"
	if movesVMs(op) {
		undone = "what has moved stays where it is"
	}
	p.What = fmt.Sprintf("%s of %s %s; %s", op.Kind, target(op), op.State, undone)
	see := fmt.Sprintf("see `gnext op show %s`", op.ID)
	if p.Fix == "" {
		p.Fix = see
	} else {
		p.Fix += "; " + see
	}
	return p
}

// target says in words what an operation is about.
func target(op *api.Operation) string {
	t := op.Target
	switch {
	case t.Kind == "":
		return "everything"
	case t.Name != "":
		return t.Kind.Singular() + " " + t.Name
	default:
		return t.Kind.Singular() + " " + t.ID
	}
}
