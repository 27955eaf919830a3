package command

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"128M": 128 * api.MiB, "1G": api.GiB, "2GiB": 2 * api.GiB, "2gib": 2 * api.GiB, "1.5G": 1536 * api.MiB, "0.5k": 512, "4096B": 4096,
		" 1 T ": api.TiB, "0M": 0, "8388607T": 8388607 * api.TiB,
	} {
		got, err := parseSize(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for in, why := range map[string]string{
		"": "empty", "128": "no unit", "1.5": "no unit", "M": "begin with a number", ".G": "begin with a number", "1..5G": "begin with a number",
		"-1G": "negative", "1MB": "MiB is the latter", "1gb": "GiB is the latter", "1X": "unit is none of", "1G2": "unit is none of", "0x10M": "unit is none of",
		"0.3B": "whole number", "8388608T": "too large", "99999999999999999999G": "too large", "1e3M": "unit is none of", "１M": "begin with a number",
	} {
		_, err := parseSize(in)
		p := problem.From(err)
		require.NotNil(t, p, in)
		require.Equal(t, problem.Invalid, p.Kind)
		require.Contains(t, p.Why, why, in)
		require.NotEmpty(t, p.Fix)
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1023: "1023B", 1024: "1K", 1536: "1.5K", 128 * api.MiB: "128M", api.GiB + api.MiB: "1G", 1536 * api.MiB: "1.5G",
		-api.GiB: "-1G", math.MinInt64: "-8388608T", math.MaxInt64: "8388608T",
	} {
		require.Equal(t, want, formatSize(n))
	}
}

// FuzzParseSize: nothing makes it panic, what it takes is not negative, and a whole size is read back as it was written.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"128M", "1.5G", "2GiB", "1MB", "-1G", "99999999999999999999T", "1e9M", "١K"} {
		f.Add(s, 128*api.MiB)
	}
	f.Fuzz(func(t *testing.T, s string, n int64) {
		got, err := parseSize(s)
		if err != nil {
			require.Equal(t, problem.Invalid, problem.From(err).Kind)
		}
		require.GreaterOrEqual(t, got, int64(0))
		if n >= 0 {
			n &^= 1<<(n%64%50) - 1 // so that all units come up
			if unit := unitOf(n); n%unit == 0 {
				back, err := parseSize(formatSize(n))
				require.NoError(t, err, formatSize(n))
				require.Equal(t, n, back, formatSize(n))
			}
		}
	})
}

func unitOf(n int64) int64 {
	for _, u := range []int64{api.TiB, api.GiB, api.MiB, api.KiB} {
		if n >= u {
			return u
		}
	}
	return 1
}
