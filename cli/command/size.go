package command

import (
	"math/big"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

var sizeUnits = map[string]int64{
	"b": 1, "k": api.KiB, "kib": api.KiB, "m": api.MiB, "mib": api.MiB, "g": api.GiB, "gib": api.GiB, "t": api.TiB, "tib": api.TiB,
}

// parseSize reads sizes like 128M, 1.5G, 2GiB and 4096B, in bytes. Units are powers of 1024. A unit must be there: 128 may
// mean MiB to one reader and bytes to another. So must not be KB, MB, GB and TB, for the same reason.
func parseSize(s string) (int64, error) {
	bad := func(format string, args ...any) (int64, error) {
		return 0, problem.New(problem.Invalid, "%q is not a size", s).Because(format, args...).Try("write a number and a unit, like 128M, 1.5G or 2GiB")
	}
	text := strings.TrimSpace(s)
	cut := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if text == "" {
		return bad("it is empty")
	}
	if cut < 0 {
		return bad("it has no unit")
	}
	number, unit := text[:cut], strings.ToLower(strings.TrimSpace(text[cut:]))
	factor, ok := sizeUnits[unit]
	switch {
	case strings.HasPrefix(text, "-"):
		return bad("it is negative")
	case unit == "kb" || unit == "mb" || unit == "gb" || unit == "tb":
		return bad("%s may be a power of 1000 or of 1024; %siB is the latter", strings.ToUpper(unit), strings.ToUpper(unit[:1]))
	case number == "" || number == "." || strings.Count(number, ".") > 1 || len(number) > 32:
		return bad("it does not begin with a number")
	case !ok:
		return bad("the unit is none of B, K, M, G, T (or KiB, MiB, GiB, TiB)")
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return bad("it does not begin with a number")
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	switch {
	case !r.IsInt():
		return bad("it is not a whole number of bytes")
	case !r.Num().IsInt64():
		return bad("it is too large")
	}
	return r.Num().Int64(), nil
}

// formatSize writes n bytes as people do.
func formatSize(n int64) string { return api.Size(n) }

// sizeFlag is a flag that holds a size.
type sizeFlag struct{ bytes *int64 }

// String implements pflag.Value.
func (f sizeFlag) String() string {
	if f.bytes == nil || *f.bytes == 0 {
		return ""
	}
	return formatSize(*f.bytes)
}

// Set implements pflag.Value.
func (f sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	*f.bytes = n
	return nil
}

// Type implements pflag.Value.
func (f sizeFlag) Type() string { return "SIZE" }
