-- Airports as other tables read them: metres in place of feet, and no value in place of an empty text.
SELECT
    _row,
    icao,
    nullif(iata, '') AS iata,
    nullif(lid, '') AS faa,
    trim(name) AS name,
    nullif(city, '') AS city,
    nullif(subd, '') AS region,
    country,
    round(elevation * 0.3048)::INTEGER AS elevation,
    lat,
    lon,
    tz
FROM {rows}
