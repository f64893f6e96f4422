"""Streams: their end, for who goes on writing them; their values, for who reads them."""

from typing import Final

# Whether the last value is the one that closes a stream, and its offset; no row: it is empty.
FETCH_STREAM_END: Final = """
select s."offset",
       s.value = '"__DBOS_STREAM_CLOSED__"' and s.serialization is not distinct from 'portable_json'
  from dbos.streams s
 where s.workflow_uuid = $1 and s.key = $2
 order by s."offset" desc
 limit 1
"""

# For each place in a stream, what there is from there on: $4 values, or fewer if they have $5
# bytes together; one row without a value if there is none. All in one snapshot, so that a workflow
# that has ended here has no values that are not here. Places in their order, values in theirs.
FETCH_STREAM_VALUES: Final = """
select t.place::int, w.status, s."offset", s.value, s.serialization
  from unnest($1::text[], $2::text[], $3::int[])
       with ordinality as t(workflow_uuid, key, "offset", place)
  left join lateral (
       select w.status from dbos.workflow_status w where w.workflow_uuid = t.workflow_uuid
       offset 0) w on true
  left join lateral (
       select v."offset", v.value, v.serialization
         from (select s."offset", s.value, s.serialization,
                      sum(octet_length(s.value)) over (order by s."offset")
                      - octet_length(s.value) as bytes_before
                 from dbos.streams s
                where s.workflow_uuid = t.workflow_uuid and s.key = t.key
                  and s."offset" >= t."offset"
                order by s."offset"
                limit $4) v
        where v.bytes_before < $5) s on true
"""
