package command

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// The output formats.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatCSV   = "csv"
)

var formats = []string{formatTable, formatJSON, formatYAML, formatCSV}

// cell is a value as people read it and as programs do.
type cell struct{ text, raw string }

func text(s string) cell        { return cell{s, s} }
func number(n int) cell         { return text(strconv.Itoa(n)) }
func size(n int64) cell         { return cell{formatSize(n), strconv.FormatInt(n, 10)} }
func words(s []string) cell     { return cell{strings.Join(s, ","), strings.Join(s, " ")} }
func phase(p api.Phase) cell    { return text(string(p)) }
func yes(b bool) cell           { return text(map[bool]string{true: "yes", false: "no"}[b]) }
func optionalSize(n int64) cell { return map[bool]cell{true: {}, false: size(n)}[n == 0] }

// age shows how long ago t was.
func age(t time.Time) cell {
	if t.IsZero() {
		return cell{}
	}
	return cell{shortDuration(time.Since(t)), t.UTC().Format(time.RFC3339)}
}

// shortDuration keeps the largest one or two units: 3d4h, 2h5m, 1m30s, 1.5s.
func shortDuration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "0s"
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Round(100*time.Millisecond).Seconds(), 'f', -1, 64) + "s"
	case d < time.Minute:
		return strconv.Itoa(int(d.Seconds())) + "s"
	case d < time.Hour:
		return twoUnits(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return twoUnits(d, time.Hour, "h", time.Minute, "m")
	default:
		return twoUnits(d, day, "d", time.Hour, "h")
	}
}

func twoUnits(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	s := strconv.FormatInt(int64(d/big), 10) + bigName
	if rest := d % big / small; rest > 0 {
		s += strconv.FormatInt(int64(rest), 10) + smallName
	}
	return s
}

// column is one property of a T.
type column[T any] struct {
	title string
	of    func(context.Context, *app, T) cell
}

// col makes a column that needs nothing but the T.
func col[T any](title string, of func(T) cell) column[T] {
	return column[T]{title, func(_ context.Context, _ *app, t T) cell { return of(t) }}
}

// printList writes items as one table, or as a list in the other formats.
func printList[T any](ctx context.Context, a *app, columns []column[T], items []T) error {
	switch a.output {
	case formatJSON, formatYAML:
		if items == nil {
			items = []T{}
		}
		return a.printValue(items)
	case formatCSV:
		w := csv.NewWriter(a.Stdout)
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = strings.ReplaceAll(strings.ToLower(c.title), " ", "_")
		}
		err := w.Write(row)
		for _, item := range items {
			for i, c := range columns {
				row[i] = c.of(ctx, a, item).raw
			}
			if err == nil {
				err = w.Write(row)
			}
		}
		w.Flush()
		return writeError(cmpErr(err, w.Error()))
	}
	rows := make([][]string, 1, len(items)+1)
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
	}
	for _, item := range items {
		row := make([]string, len(columns))
		for i, c := range columns {
			if row[i] = oneLine(c.of(ctx, a, item).text); row[i] == "" {
				row[i] = "-"
			}
		}
		rows = append(rows, row)
	}
	return writeError(writeTable(a.Stdout, rows))
}

// printItem writes one item: line by line in a table, or whole in the other formats.
func printItem[T any](ctx context.Context, a *app, columns, more []column[T], item T) error {
	switch a.output {
	case formatJSON, formatYAML:
		return a.printValue(item)
	case formatCSV:
		return printList(ctx, a, columns, []T{item})
	}
	var rows [][]string
	for _, c := range slices.Concat(columns, more) {
		for i, line := range strings.Split(c.of(ctx, a, item).text, "\n") {
			switch {
			case i > 0:
				rows = append(rows, []string{"", line})
			case line != "":
				rows = append(rows, []string{c.title, line})
			}
		}
	}
	return writeError(writeTable(a.Stdout, rows))
}

// printValue writes v as JSON or YAML.
func (a *app) printValue(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return problem.Wrap(err, problem.Internal, "the answer cannot be printed")
	}
	if a.output == formatYAML {
		y, err := yamlFromJSON(b.Bytes())
		if err != nil {
			return problem.Wrap(err, problem.Internal, "the answer cannot be printed")
		}
		b.Reset()
		b.Write(y)
	}
	_, err := a.Stdout.Write(b.Bytes())
	return writeError(err)
}

func writeTable(w io.Writer, rows [][]string) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// oneLine keeps a cell inside its row, whatever a server sends.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

func labels(m map[string]string) cell {
	pairs := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return words(pairs)
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// writeError makes a failed write to stdout a problem.
func writeError(err error) error {
	return problem.Wrap(err, problem.Internal, "cannot write the output")
}
